"""Accuracy and agreement are counted where there are classes, and left out with a reason where there are none."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_kd.metrics import Comparison
from tests import support


def compare(student, teacher, target, **options):
    comparison = Comparison(**options)
    comparison.update(student, teacher, target)
    return comparison.compute(), comparison.left_out


def scores(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("outputs", "target"),
    [
        ((8, 4), torch.randint(0, 2, (8, 4))),  # multi-hot, as integers
        ((8, 4), torch.randint(0, 2, (8, 4)).float()),
        ((8, 4), torch.randint(0, 2, (8, 4)).bool()),
        ((8, 4), torch.randn(8, 4)),  # a regression
        ((8, 1), torch.randn(8, 1)),
        ((8,), torch.randn(8)),
        ((8, 4), torch.zeros(8, 1, dtype=torch.long)),
        ((2, 3, 4, 4), torch.zeros(2, 8, 8, dtype=torch.long)),  # a mask finer than the logits
        ((2, 3, 4, 4), torch.zeros(2, 1, 4, 4, dtype=torch.long)),
        ((2, 5, 5), torch.zeros(2, 5, dtype=torch.long)),  # as many tokens as classes
    ],
)
def test_what_has_no_classes_is_left_out_with_a_reason(outputs, target):
    values, left_out = compare(scores(*outputs), scores(*outputs, seed=1), target)
    assert values == {}
    assert set(left_out) == {"accuracy", "teacher_accuracy", "agreement"}


def test_the_classes_of_tokens_are_last():
    student, teacher = scores(2, 7, 5), scores(2, 7, 5, seed=1)
    target = torch.randint(0, 5, (2, 7), generator=torch.Generator().manual_seed(2))
    values, _ = compare(student, teacher, target)
    assert values == pytest.approx(
        {
            "accuracy": (student.argmax(-1) == target).float().mean().item(),
            "teacher_accuracy": (teacher.argmax(-1) == target).float().mean().item(),
            "agreement": (student.argmax(-1) == teacher.argmax(-1)).float().mean().item(),
        }
    )
    assert compare(student.mT, teacher.mT, target)[0] == pytest.approx(values)


def test_void_does_not_count():
    target = torch.tensor([0, 1, 255, 255])
    perfect = nn.functional.one_hot(target % 255, 3).float()
    assert compare(perfect, None, target, ignore_index=255)[0] == {"accuracy": 1.0}


@pytest.mark.parametrize("door", ["module", "callback"])
def test_a_validation_that_has_no_classes_goes_on(door):
    x, y = support.data(16).tensors
    rows = DataLoader(TensorDataset(x, nn.functional.one_hot(y, support.CLASSES).float() * 3 - 1), batch_size=8)
    made, callbacks = support.through(door)
    if door == "module":
        made.task_loss = nn.MSELoss()
    else:
        made.criterion = nn.MSELoss()
    trainer = support.fit(made, train=rows, val=rows, callbacks=callbacks, max_epochs=1)
    assert "val/accuracy" not in trainer.callback_metrics
    assert "val/agreement" not in trainer.callback_metrics


def test_the_task_says_which_id_is_void():
    x, y = support.data(16).tensors
    y[::2] = 255
    made = support.module(task_loss=nn.CrossEntropyLoss(ignore_index=255))
    rows = DataLoader(TensorDataset(x, y), batch_size=8)
    trainer = support.fit(made, train=rows, val=rows, max_epochs=1)
    made.student.eval()
    right = (made.student(x).argmax(1) == y)[1::2].float().mean()
    assert trainer.callback_metrics["val/accuracy"] == pytest.approx(right.item())
