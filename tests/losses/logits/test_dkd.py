"""Decoupled distillation: the authors' numbers, the two parts, missing labels, and far too certain networks."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_kd.functional import dkd_loss, kd_loss
from lightning_kd.losses import DKDLoss
from lightning_kd.schedules import LinearSchedule, Moment, WarmUpSchedule
from tests.losses.case import random
from tests.losses.golden import Golden, check_golden, golden


@pytest.mark.parametrize("record", golden("dkd", "", "__tckd", "__nckd", "__T1"), ids=str)
def test_it_equals_the_authors_code(record: Golden) -> None:
    alpha, beta, temperature = (record.hyper[name] for name in ("alpha", "beta", "T"))

    def formula(students: list[Tensor], teachers: list[Tensor], rest: dict[str, Tensor]) -> Tensor:
        return dkd_loss(students[0], teachers[0], rest["labels"], alpha=alpha, beta=beta, temperature=temperature)

    check_golden(record, formula)


def loop(student: Tensor, teacher: Tensor, target: Tensor, alpha: float, beta: float, temperature: float) -> Tensor:
    """Sample by sample from the definition."""
    values = []
    for z, v, y in zip(student, teacher, target, strict=True):
        p, q = (z / temperature).softmax(0), (v / temperature).softmax(0)
        keep = torch.arange(len(z)) != y
        others = [r[keep] / r[keep].sum() for r in (q, p)]
        pairs = [(q[y], p[y]), (1 - q[y], 1 - p[y])]
        of_target = sum(a * (a / b).log() for a, b in pairs)
        values.append(alpha * of_target + beta * (others[0] * (others[0] / others[1]).log()).sum())
    return temperature**2 * torch.stack(values).mean()


@pytest.mark.parametrize("shape", [(3, 2), (5, 7), (2, 3, 3, 1), (1, 4, 2, 2, 3)], ids=str)
def test_it_equals_a_loop_over_samples(shape: tuple[int, ...]) -> None:
    student, teacher = (2 * random(*shape, seed=seed) for seed in (1, 2))
    target = torch.randint(shape[1], (shape[0], *shape[2:]))
    flat = [z.movedim(1, -1).reshape(-1, shape[1]) for z in (student, teacher)]
    expected = loop(*flat, target.flatten(), 0.5, 3.0, 2.5)
    torch.testing.assert_close(dkd_loss(student, teacher, target, alpha=0.5, beta=3.0, temperature=2.5), expected)


def test_plain_kd_is_both_parts_with_the_second_as_large_as_the_teachers_doubt() -> None:
    student, teacher, target = random(1, 6, seed=1), random(1, 6, seed=2), torch.tensor([4])
    doubt = 1 - teacher.softmax(1)[0, 4].item()
    value = dkd_loss(student, teacher, target, beta=doubt, temperature=1.0)
    torch.testing.assert_close(value, kd_loss(student, teacher, temperature=1.0))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("gap", [1000.0, -1000.0, 1e4, 3e4])
@pytest.mark.parametrize("classes", [2, 3, 10])
@pytest.mark.parametrize("agree", [True, False])
def test_a_gap_of_a_thousand_has_a_finite_gradient(agree: bool, classes: int, gap: float, dtype: torch.dtype) -> None:
    student = torch.zeros(1, classes, dtype=dtype)
    student[0, 0] = gap
    teacher = student.clone() if agree else -student
    student.requires_grad_()
    value = dkd_loss(student, teacher, torch.tensor([0]), temperature=1.0)
    value.backward()
    # The odds of the target are gap - ln(C - 1); the others are all alike. The divergence of certain opposites, to
    # within exp(-1000), is the log odds of the one that is wrong, of either sign.
    wrong = abs(student.detach().double()[0, 0].item()) - math.copysign(math.log(classes - 1), gap)
    assert value.item() == pytest.approx(0.0 if agree else wrong, rel=1e-6)
    assert student.grad is not None
    assert student.grad.isfinite().all()
    # and it pulls the target's score with the whole probability
    assert student.grad[0, 0].item() == pytest.approx(0.0 if agree else math.copysign(1.0, gap), abs=1e-6)


@pytest.mark.parametrize("gap", [1000.0, 3e4])
def test_the_order_of_the_others_counts_below_a_large_gap(gap: float) -> None:
    student = torch.tensor([[0.0, -gap, -gap]], dtype=torch.float64)
    teacher = torch.tensor([[0.0, math.log(3.0) - gap, -gap]], dtype=torch.float64)
    student.requires_grad_()
    value = dkd_loss(student, teacher, torch.tensor([0]), beta=2.0, temperature=1.0)
    value.backward()
    assert value.item() == pytest.approx(2 * (0.75 * math.log(1.5) + 0.25 * math.log(0.5)), rel=1e-5)
    torch.testing.assert_close(student.grad, torch.tensor([[0.0, -0.5, 0.5]]).double())  # 2 (1/2 - 3/4)


def test_a_target_far_below_the_others_is_left_out_too() -> None:
    student, teacher = torch.tensor([[-3000.0, 0.0, 0.0]]), torch.tensor([[3000.0, math.log(3.0), 0.0]])
    value = dkd_loss(student, teacher, torch.tensor([0]), alpha=0.0, beta=1.0, temperature=1.0)
    assert value.item() == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5), rel=1e-5)


def test_a_single_logit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"dkd_loss: expected at least 2 classes.*\(2, 1\).*kd_loss"):
        dkd_loss(torch.zeros(2, 1), torch.zeros(2, 1), torch.zeros(2, dtype=torch.long))
    with pytest.raises(ValueError, match=r"DKDLoss: a single logit.*use KDLoss"):
        DKDLoss().build({"<logits>": (2, 1)}, {"<logits>": (2, 1)})


@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 1, 2)], ids=str)
def test_what_has_no_label_is_as_good_as_absent(shape: tuple[int, ...]) -> None:
    student, teacher = random(*shape, seed=1).requires_grad_(), random(*shape, seed=2)
    target = torch.randint(5, (4, *shape[2:]))
    target[1::2] = -100
    value = dkd_loss(student, teacher, target)
    torch.testing.assert_close(value, dkd_loss(student[::2], teacher[::2], target[::2]))
    value.backward()
    assert student.grad is not None
    assert not student.grad[1::2].any()
    assert student.grad[::2].all()


def test_without_any_label_it_is_zero_and_still_has_a_graph() -> None:
    student = random(3, 4, seed=1).requires_grad_()
    value = dkd_loss(student, random(3, 4, seed=2), torch.full((3,), 7), ignore_index=7)
    value.backward()
    assert value.item() == 0.0
    assert student.grad is not None
    assert not student.grad.any()


def test_an_empty_batch_still_backpropagates() -> None:
    student = torch.zeros(0, 5, requires_grad=True)
    value = dkd_loss(student, torch.zeros(0, 5), torch.zeros(0, dtype=torch.long))
    value.backward()
    assert value.item() == 0.0


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32], ids=str)
def test_class_ids_of_any_whole_type_are_accepted(dtype: torch.dtype) -> None:
    student, teacher, target = random(3, 4, seed=1), random(3, 4, seed=2), torch.tensor([0, 3, 1])
    torch.testing.assert_close(dkd_loss(student, teacher, target.to(dtype)), dkd_loss(student, teacher, target))


def test_a_class_id_out_of_range_is_an_error() -> None:
    with pytest.raises((RuntimeError, IndexError), match="out of bounds"):
        dkd_loss(torch.zeros(2, 3), torch.zeros(2, 3), torch.tensor([0, 3]))


@pytest.mark.parametrize("target", [torch.zeros(2, 3), torch.zeros(2), torch.zeros(2, 3, dtype=torch.long)])
def test_a_target_that_holds_no_class_ids_is_refused(target: Tensor) -> None:
    with pytest.raises(ValueError, match=r"dkd_loss: expected class ids of shape \(2,\).*argmax"):
        dkd_loss(torch.zeros(2, 3), torch.zeros(2, 3), target)


@pytest.mark.parametrize("option", [{"alpha": -1.0}, {"beta": math.inf}, {"temperature": 0.0}], ids=str)
def test_a_factor_out_of_range_is_refused(option: dict[str, float]) -> None:
    name = next(iter(option))
    with pytest.raises(ValueError, match=f"dkd_loss: expected .*{name}"):
        dkd_loss(torch.zeros(1, 2), torch.zeros(1, 2), torch.tensor([0]), **option)
    with pytest.raises(ValueError, match=f"DKDLoss: expected .*{name}"):
        DKDLoss(**option)


def test_every_factor_may_follow_a_schedule() -> None:
    schedule = LinearSchedule(1.0, 3.0, length=2)
    loss = DKDLoss(alpha=schedule, beta=schedule, temperature=schedule, weight=WarmUpSchedule(1.0, length=20))
    assert loss.changes_over_time
    loss.moment = Moment(epoch=1)
    student, teacher, target = random(4, 5, seed=1), random(4, 5, seed=2), torch.tensor([0, 1, 2, 3])
    expected = dkd_loss(student, teacher, target, alpha=2.0, beta=2.0, temperature=2.0)
    torch.testing.assert_close(loss(student, teacher, target=target), expected)
    assert loss.weight_now == 2 / 20


@pytest.mark.parametrize("offset", [5.0, 100.0])
def test_float32_has_the_gradient_of_a_tight_cluster_far_from_zero(offset: float) -> None:
    student, teacher = (offset + 1e-3 * random(8, 10, seed=seed) for seed in (1, 2))
    target = torch.arange(8)
    gradients = []
    for dtype in (torch.float64, torch.float32):
        leaf = student.float().to(dtype).requires_grad_()
        dkd_loss(leaf, teacher.float().to(dtype), target, temperature=1.0).backward()
        assert leaf.grad is not None
        gradients.append(leaf.grad.double())
    exact, single = gradients
    assert (single - exact).abs().max() <= 1e-4 * exact.abs().max()


def test_it_equals_cross_entropy_but_for_a_constant_if_the_teacher_is_always_right() -> None:
    target = torch.tensor([2, 0, 1])
    certain = 1e4 * F.one_hot(target, 4).double()
    student = random(3, 4, seed=1)
    value = dkd_loss(student, certain, target, beta=0.0, temperature=1.0)
    torch.testing.assert_close(value, F.cross_entropy(student, target))
