"""Accuracy and agreement are counted where there are classes, and left out with a reason where there are none."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_kd.losses import RegressionKDLoss
from lightning_kd.metrics import Comparison
from lightning_kd.metrics.task import Task
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
        ((2, 3, 4, 4), torch.zeros(2, 8, 8, dtype=torch.long)),  # a mask finer than the logits
        ((2, 5, 5), torch.zeros(2, 5, dtype=torch.long)),  # as many tokens as classes
        ((2, 5, 5), None),
    ],
)
def test_what_has_no_classes_is_left_out_with_a_reason(outputs, target):
    values, left_out = compare(scores(*outputs), scores(*outputs, seed=1), target)
    assert values == {}
    assert set(left_out) == {"agreement"}


@pytest.mark.parametrize("outputs", [(8, 4), (2, 3, 4, 4)])
def test_ids_with_an_axis_of_one_are_ids(outputs):
    student, teacher = scores(*outputs), scores(*outputs, seed=1)
    target = student.argmax(1, keepdim=True)
    values, _ = compare(student, teacher, target)
    assert values["accuracy"] == 1.0
    assert values["teacher_accuracy"] == values["agreement"] < 1.0


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


@pytest.mark.parametrize("axis", [1, 2])
@pytest.mark.parametrize("labelled", [True, False])
def test_padding_does_not_count(axis, labelled):
    student, teacher = scores(3, 7, 5), scores(3, 7, 5, seed=1)
    mask = torch.arange(7) < torch.tensor([[7], [3], [1]])
    target = torch.randint(0, 5, (3, 7), generator=torch.Generator().manual_seed(2)) if labelled else None
    comparison = Comparison(Task(kind="classes", class_axis=axis))
    comparison.update(*(one if axis == 2 else one.mT for one in (student, teacher)), target, mask)
    ours, its = student.argmax(-1)[mask], teacher.argmax(-1)[mask]
    expected = {"agreement": (ours == its).float().mean().item()}
    if labelled:
        expected["accuracy"] = (ours == target[mask]).float().mean().item()
        expected["teacher_accuracy"] = (its == target[mask]).float().mean().item()
    assert comparison.compute() == pytest.approx(expected)


def test_a_mask_of_samples_leaves_samples_out():
    student, teacher, target = scores(6, 5), scores(6, 5, seed=1), torch.arange(6) % 5
    mask = torch.tensor([True, False, True, True, False, True])
    comparison, chosen = Comparison(), Comparison()
    comparison.update(student, teacher, target, mask)
    chosen.update(student[mask], teacher[mask], target[mask])
    assert comparison.compute() == chosen.compute()


def test_a_mask_of_tokens_says_nothing_of_outputs_of_samples():
    student, teacher, target = scores(6, 5), scores(6, 5, seed=1), torch.arange(6) % 5
    comparison, whole = Comparison(), Comparison()
    comparison.update(student, teacher, target, torch.zeros(6, 5, dtype=torch.bool))
    whole.update(student, teacher, target)
    assert comparison.compute() == whole.compute()


def test_void_does_not_count():
    target = torch.tensor([0, 1, 255, 255])
    perfect = nn.functional.one_hot(target % 255, 3).float()
    assert compare(perfect, None, target, task=Task(ignore_index=255))[0] == {"accuracy": 1.0}


@pytest.mark.parametrize("door", ["module", "callback"])
def test_a_validation_that_has_no_classes_goes_on(door):
    x, y = support.data(16).tensors
    rows = DataLoader(TensorDataset(x, nn.functional.one_hot(y, support.CLASSES).float() * 3 - 1), batch_size=8)
    made, callbacks = support.through(door, losses=[RegressionKDLoss()])
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
