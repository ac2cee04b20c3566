"""Teacher-free distillation: the definition with the teacher written out, missing labels, and training without one."""

import math

import pytest
import torch
from torch import Tensor

from lightning_kd.functional import tfkd_loss
from lightning_kd.losses import TfKDLoss
from lightning_kd.losses.base import LOGITS
from lightning_kd.schedules import LinearSchedule, Moment
from tests import support
from tests.losses.case import random


@pytest.mark.parametrize(("probability", "temperature"), [(0.99, 20.0), (0.99, 40.0), (0.6, 0.3), (1.0, 1.0)])
@pytest.mark.parametrize("shape", [(3, 2), (5, 7), (2, 3, 3, 1)], ids=str)
def test_it_equals_a_loop_with_the_teacher_written_out(
    shape: tuple[int, ...], probability: float, temperature: float
) -> None:
    student = 2 * random(*shape, seed=1)
    target = torch.randint(shape[1], (shape[0], *shape[2:]))
    values = []
    for z, y in zip(student.movedim(1, -1).reshape(-1, shape[1]), target.flatten(), strict=True):
        teacher = torch.full_like(z, (1 - probability) / (len(z) - 1))
        teacher[y] = probability
        u = (teacher / temperature).softmax(0)
        values.append((u * (u.log() - z.log_softmax(0))).sum())
    value = tfkd_loss(student, target, correct_probability=probability, temperature=temperature)
    torch.testing.assert_close(value, torch.stack(values).mean())


def test_the_minimum_is_at_the_imagined_teacher() -> None:
    student = torch.full((1, 4), 0.1 / 3 / 0.5, dtype=torch.float64)
    student[0, 2] = 0.9 / 0.5
    student.requires_grad_()
    value = tfkd_loss(student, torch.tensor([2]), correct_probability=0.9, temperature=0.5)
    value.backward()
    assert value.item() == pytest.approx(0.0, abs=1e-14)
    assert student.grad is not None
    assert student.grad.abs().max() < 1e-14


@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 1, 2)], ids=str)
def test_what_has_no_label_is_as_good_as_absent(shape: tuple[int, ...]) -> None:
    student = random(*shape, seed=1).requires_grad_()
    target = torch.randint(5, (4, *shape[2:]))
    target[1::2] = -100
    value = tfkd_loss(student, target)
    torch.testing.assert_close(value, tfkd_loss(student[::2], target[::2]))
    value.backward()
    assert student.grad is not None
    assert not student.grad[1::2].any()


def test_without_any_label_it_is_zero_and_still_has_a_graph() -> None:
    student = random(3, 4, seed=1).requires_grad_()
    value = tfkd_loss(student, torch.full((3,), 7), ignore_index=7)
    value.backward()
    assert value.item() == 0.0
    assert student.grad is not None
    assert not student.grad.any()


def test_an_empty_batch_still_backpropagates() -> None:
    student = torch.zeros(0, 5, requires_grad=True)
    tfkd_loss(student, torch.zeros(0, dtype=torch.long)).backward()
    assert student.grad is not None


def test_it_trains_a_student_that_has_no_teacher() -> None:
    module = support.module(teacher=None, task_loss=None, losses=[TfKDLoss(temperature=0.2)])
    before = [p.detach().clone() for p in module.student.parameters()]
    support.fit(module)
    assert not TfKDLoss().needs_teacher
    assert any(not torch.equal(a, b) for a, b in zip(before, module.student.parameters(), strict=True))


def test_the_temperature_may_follow_a_schedule() -> None:
    loss = TfKDLoss(temperature=LinearSchedule(1.0, 3.0, length=2))
    loss.moment = Moment(epoch=1)
    student, target = random(4, 5, seed=1), torch.tensor([0, 1, 2, 3])
    torch.testing.assert_close(loss(student, target=target), tfkd_loss(student, target, temperature=2.0))


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ({"correct_probability": 0.0}, r"expected correct_probability in \(0, 1\], got 0"),
        ({"correct_probability": 1.1}, r"expected correct_probability in \(0, 1\], got 1.1"),
        ({"temperature": math.inf}, "expected temperature > 0, got inf"),
    ],
)
def test_a_setting_that_cannot_be_is_refused(option: dict[str, float], words: str) -> None:
    with pytest.raises(ValueError, match=f"tfkd_loss: {words}"):
        tfkd_loss(torch.zeros(1, 2), torch.tensor([0]), **option)
    with pytest.raises(ValueError, match=f"TfKDLoss: {words}"):
        TfKDLoss(**option)


@pytest.mark.parametrize("logits", [torch.zeros(2, 1), torch.zeros(2, 3, 5), torch.zeros(2)])
def test_logits_without_other_classes_are_refused(logits: Tensor) -> None:
    with pytest.raises(ValueError, match=r"tfkd_loss: expected .*\(2,"):
        tfkd_loss(logits, torch.zeros(2, dtype=torch.long))
    with pytest.raises(ValueError, match=r"TfKDLoss: expected .*\(2,"):
        TfKDLoss().build({LOGITS: tuple(logits.shape)}, {})


def test_build_accepts_classes_and_unknown_shapes() -> None:
    TfKDLoss().build({LOGITS: (2, 10)}, {})
    TfKDLoss().build({}, {})
