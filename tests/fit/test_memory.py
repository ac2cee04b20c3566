"""Losses that remember the data set, in a fit: rows, banks, checkpoints, and data that does not fit."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from lightning_kd import DistillationModule
from lightning_kd.data import Indexed
from lightning_kd.losses import CRDLoss, HybridLoss, KDLoss
from tests import support

DOORS = ["module", "callback"]


def crd():
    return CRDLoss("features", "features", dim=4, negatives=6)


def indexed(count=24):
    return DataLoader(Indexed(support.data(count)), batch_size=8)


class Resumable(support.ResumableLoader):
    """Batches with rows, that go on in the middle of an epoch."""

    def __init__(self):
        super().__init__()
        self.dataset = Indexed(support.data())
        self.batches = list(indexed())


def fitted(door, losses, **options):
    torch.manual_seed(5)
    net = support.student()
    made, callbacks = support.through(door, net, losses=losses)
    parts = callbacks[0].losses if callbacks else made.losses
    trainer = support.fit(made, callbacks=[*callbacks, *options.pop("callbacks", [])], **options)
    return made, trainer, net, parts


@pytest.mark.parametrize("door", DOORS)
def test_the_banks_take_up_every_row(door):
    losses = [crd()]
    torch.manual_seed(5)
    *_, parts = fitted(door, losses, train=indexed(), max_epochs=1)
    bank = parts["crd"].student_bank
    assert bank.shape == (24, 4)
    torch.testing.assert_close(bank.norm(dim=1), torch.ones(24))  # the start is not of unit length


@pytest.mark.parametrize("at", [1, 2, 4])
@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("nested", [False, True])
def test_banks_and_draws_resume_exactly(door, at, nested, tmp_path):
    def losses():
        return [HybridLoss([crd(), KDLoss()])] if nested else [crd()]

    options = {"train": Resumable(), "max_epochs": 2}
    _, _, whole, parts = fitted(door, losses(), callbacks=[support.SaveEveryStep(tmp_path)], **options)
    _, _, resumed, its = fitted(door, losses(), ckpt_path=tmp_path / f"{at}.ckpt", seed=99, **options)
    support.assert_same_weights(whole, resumed)
    support.assert_same_weights(parts, its)


def test_a_checkpoint_brings_its_banks_and_asks_for_its_data(tmp_path):
    module, trainer, *_ = fitted("module", [crd()], train=indexed())
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    again = DistillationModule.load_from_checkpoint(
        tmp_path / "last.ckpt", student=support.student(), teacher=support.teacher(), task_loss=nn.CrossEntropyLoss()
    )
    support.assert_same_weights(module, again)
    support.fit(again, train=indexed())
    with pytest.raises(ValueError, match="training data has 16 rows, but the losses of the checkpoint remember 24"):
        support.fit(again, train=indexed(16))


@pytest.mark.parametrize("door", DOORS)
def test_a_second_fit_goes_on_with_the_banks(door):
    torch.manual_seed(5)
    made, callbacks = support.through(door, support.student(), losses=[crd()])
    parts = callbacks[0].losses if callbacks else made.losses
    support.fit(made, callbacks=callbacks, train=indexed(), max_epochs=1)
    bank = parts["crd"].student_bank.clone()
    support.fit(made, callbacks=callbacks, train=indexed(), max_epochs=1)
    assert parts["crd"].student_bank.shape == bank.shape
    assert not torch.equal(parts["crd"].student_bank, bank)


@pytest.mark.parametrize("door", DOORS)
def test_data_without_rows_is_refused_with_the_remedy(door):
    with pytest.raises(ValueError, match=r"needs each sample's row.*give \(x, y, index\)"):
        fitted(door, [crd()])
    with pytest.raises(ValueError, match=r"DataLoader over a data set with a length.*lightning_kd.data.Indexed"):
        fitted(door, [crd()], train=list(indexed()))


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize(
    ("rows", "words"), [([3, 3], "two samples of a batch have the same row"), ([0, 24], "row indices from 0 to 23")]
)
def test_rows_that_cannot_be_are_refused(door, rows, words):
    x, y = support.data(2).tensors
    wrong = Resumable()
    wrong.batches = [(x, y, torch.tensor(rows))]
    with pytest.raises(ValueError, match=words):
        fitted(door, [crd()], train=wrong, max_epochs=1)


def test_the_banks_stay_in_float32_in_a_16_bit_fit():
    *_, parts = fitted("module", [crd()], train=indexed(), max_epochs=1, precision="bf16-true")
    assert parts["crd"].student_bank.dtype == torch.float32
