"""A step that leaves samples out of an evaluation: the teacher's accuracy is never that of some batches."""

import math

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from lightning_kd import Batch, DistillationCallback
from lightning_kd.losses import KDLoss, RegressionKDLoss
from tests import support


class Labelled(support.UserModule):
    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.net(x[y >= 0])


class Same(DistillationCallback):
    def unpack_batch(self, batch):
        x, y = batch
        return Batch(args=(x[y >= 0],), target=y[y >= 0])


def validated(cls, *unlabelled):
    x, y = (tensor.clone() for tensor in support.data(16).tensors)
    y[list(unlabelled)] = -1
    callback = cls(support.teacher(), [KDLoss()])
    trainer = support.trainer(callbacks=[callback])
    loader = DataLoader(TensorDataset(x, y), batch_size=4)
    (found,) = trainer.validate(Labelled(support.student()), loader, verbose=False)
    with torch.no_grad():
        right = support.teacher().eval()(x).argmax(1) == y
    return found, float(right[y >= 0].float().mean())


@pytest.mark.parametrize("row", [0, 9])
def test_it_is_no_number_or_left_out_where_a_batch_was_filtered(row):
    words = "the step calls the student with other samples than"
    with pytest.warns(UserWarning, match=words):
        found, _ = validated(DistillationCallback, row)
    assert math.isnan(found.get("val/teacher_accuracy", math.nan))
    assert "val/agreement" in found


def test_it_is_right_where_unpack_batch_filters_too_or_nothing_is_filtered():
    for found, expected in (validated(Same, 0, 9), validated(DistillationCallback)):
        assert found["val/teacher_accuracy"] == pytest.approx(expected)


class Numbers(support.UserModule):
    def __init__(self, net):
        super().__init__(net)
        del self.criterion  # which names a task of classes

    def validation_step(self, batch, batch_idx):
        x, y = batch
        torch.nn.functional.mse_loss(self.net(x[x[:, 0] < 9]), y[x[:, 0] < 9])


@pytest.mark.parametrize("row", [0, 9])
def test_errors_of_numbers_are_left_out_or_no_number_too(row):
    x, y = torch.randn(16, 4), torch.randn(16, 3)
    x[row, 0] = 9.0
    student, teacher = (support.seeded(lambda: torch.nn.Linear(4, 3), seed) for seed in (1, 2))
    trainer = support.trainer(callbacks=[DistillationCallback(teacher, [RegressionKDLoss()])])
    with pytest.warns(UserWarning, match="the step calls the student with other samples than"):
        (found,) = trainer.validate(Numbers(student), DataLoader(TensorDataset(x, y), batch_size=4), verbose=False)
    assert math.isnan(found.get("val/teacher_mse", math.nan))
    assert math.isfinite(found["val/mse_to_teacher"])
