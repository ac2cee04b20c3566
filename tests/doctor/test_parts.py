"""Shares of the gradient as derived by hand."""

import pytest
import torch
from torch import nn

from lightning_kd import DistillationModule
from lightning_kd.doctor.parts import Part, PartsWatch, findings_of, shares
from lightning_kd.engine.step import Terms
from lightning_kd.losses import KDLoss


def watch_of(weight=2.0, task_weight=0.5):
    student = nn.Linear(2, 2, bias=False)
    module = DistillationModule(
        student,
        nn.Linear(2, 2),
        [KDLoss(weight=weight)],
        task_loss=nn.CrossEntropyLoss(),
        task_weight=task_weight,
    )
    return student, PartsWatch(module.run)


def test_sizes_and_cosines_are_those_of_the_weighted_parts():
    student, watch = watch_of()
    w = student.weight
    # gradients (3, 4, 0, 0) * 0.5 and (0, 1, 0, 0) * 2: lengths 2.5 and 2, cosine 4 / 5
    parts = {"task": 3 * w[0, 0] + 4 * w[0, 1], "kd": w[0, 1]}
    watch.look(Terms(parts["task"] + parts["kd"], parts, None), 0)
    task, kd = watch.parts()
    assert (task.size, kd.size) == pytest.approx((2.5, 2.0))
    assert kd.cosine == pytest.approx(0.8)
    assert task.cosine != task.cosine
    assert shares([task, kd]) == pytest.approx({"task": 2.5 / 4.5, "kd": 2.0 / 4.5})
    assert (task.weight, kd.weight) == (0.5, 2.0)
    (parts["task"] + parts["kd"]).backward()  # the graph is still there
    assert w.grad is not None


def test_a_part_that_is_drowned_gets_a_weight_that_balances_it():
    parts = [Part("task", 1.0, 2.0, 10.0, float("nan")), Part("kd", 0.5, 1.0, 0.001, 0.0)]
    (found,) = findings_of(parts)
    assert "the weight of 'kd'=5e+03" in found.remedy
    assert not found.is_sure


def test_a_part_without_gradient_is_told_unless_its_weight_is_zero():
    task = Part("task", 1.0, 2.0, 10.0, float("nan"))
    (found,) = findings_of([task, Part("kd", 0.5, 1.0, 0.0, 0.0)])
    assert "No gradient of part 'kd' reaches the student" in found.problem
    assert findings_of([task, Part("kd", 0.0, 1.0, 0.0, 0.0)]) == []


def test_parts_of_like_size_are_fine():
    parts = [Part("task", 0.1, 2.0, 1.0, float("nan")), Part("kd", 0.9, 1.0, 30.0, 0.5)]
    assert findings_of(parts) == []
    assert findings_of([]) == []


def test_a_part_that_is_a_number_has_no_gradient():
    _, watch = watch_of()
    watch.look(Terms(torch.tensor(1.0), {"kd": torch.tensor(1.0)}, None), 0)
    assert [part.size for part in watch.parts()] == [0.0]
