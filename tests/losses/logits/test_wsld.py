"""Weighted soft labels: the authors' numbers, the definition sample by sample, and how much a sample counts."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_kd.functional import kd_loss, wsld_loss
from lightning_kd.losses import WSLDLoss
from lightning_kd.schedules import LinearSchedule, Moment
from tests.losses.case import check_float32, random, tight
from tests.losses.golden import Golden, check_golden, golden


@pytest.mark.parametrize("record", golden("wsld", "", "__cls_kd"), ids=str)
def test_it_equals_the_authors_code(record: Golden) -> None:
    alpha, temperature, with_labels = (record.hyper[name] for name in ("alpha", "T", "ce"))

    def formula(students: list[Tensor], teachers: list[Tensor], rest: dict[str, Tensor]) -> Tensor:
        value = alpha * wsld_loss(students[0], teachers[0], rest["labels"], temperature=temperature)
        return value + with_labels * F.cross_entropy(students[0], rest["labels"])

    check_golden(record, formula)


def loop(student: Tensor, teacher: Tensor, target: Tensor, temperature: float) -> Tensor:
    """Sample by sample from the definition."""
    values = []
    for z, v, y in zip(student, teacher, target, strict=True):
        own, its = (-logits.softmax(0)[y].log().item() for logits in (z, v))
        entropy = -((v / temperature).softmax(0) * (z / temperature).softmax(0).log()).sum()
        values.append((1 - math.exp(-own / (its + 1e-7))) * entropy)
    return temperature**2 * torch.stack(values).mean()


@pytest.mark.parametrize("shape", [(3, 2), (5, 7), (2, 3, 3, 1), (1, 4, 2, 2, 3)], ids=str)
def test_it_equals_a_loop_over_samples(shape: tuple[int, ...]) -> None:
    student, teacher = (2 * random(*shape, seed=seed) for seed in (1, 2))
    student.requires_grad_()
    target = torch.randint(shape[1], (shape[0], *shape[2:]))
    flat = [z.movedim(1, -1).reshape(-1, shape[1]) for z in (student, teacher)]
    value, expected = wsld_loss(student, teacher, target, temperature=2.5), loop(*flat, target.flatten(), 2.5)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(*(torch.autograd.grad(one, student)[0] for one in (value, expected)))


def test_a_teacher_that_is_certain_of_the_labels_makes_it_plain_kd_but_for_a_constant() -> None:
    """All samples count whole, and a certain teacher has no entropy."""
    target = torch.tensor([2, 0, 1])
    student, certain = random(3, 4, seed=1), 1e4 * F.one_hot(target, 4).double()
    torch.testing.assert_close(
        wsld_loss(student, certain, target, temperature=3.0), kd_loss(student, certain, temperature=3.0)
    )


def test_what_the_student_knows_better_counts_for_little() -> None:
    student = torch.tensor([[9.0, 0.0, 0.0], [0.0, 9.0, 0.0]], dtype=torch.float64, requires_grad=True)
    teacher = torch.tensor([[0.0, 2.0, 0.0], [0.0, 2.0, 0.0]], dtype=torch.float64)
    wsld_loss(student, teacher, torch.tensor([0, 0])).backward()  # the first is right and the second wrong
    assert student.grad is not None
    known, unknown = student.grad.abs().amax(1)
    assert known < 1e-3 < 0.1 < unknown


def test_the_weights_are_no_way_to_a_lower_loss() -> None:
    student = random(4, 5, seed=1).requires_grad_()
    teacher, target = student.detach().clone(), torch.arange(4)
    wsld_loss(student, teacher, target).backward()  # a match, where the cross entropy is at its lowest
    assert student.grad is not None
    assert student.grad.abs().max() < 1e-12


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("gap", [1000.0, -1000.0, 1e4, 3e4])
@pytest.mark.parametrize("agree", [True, False])
def test_a_gap_of_a_thousand_has_a_finite_gradient(agree: bool, gap: float, dtype: torch.dtype) -> None:
    student = torch.zeros(1, 3, dtype=dtype)
    student[0, 0] = gap
    teacher = student.clone() if agree else -student
    student.requires_grad_()
    value = wsld_loss(student, teacher, torch.tensor([0]), temperature=1.0)
    value.backward()
    entropy = {True: 0.0 if gap > 0 else math.log(2.0), False: abs(gap) + (math.log(2.0) if gap < 0 else 0.0)}[agree]
    # equal losses weigh 1 - 1/e; one that is certain of the label against one that is certain of others, 0 or 1
    weight = 1 - 1 / math.e if agree else float(gap < 0)
    assert value.item() == pytest.approx(entropy * weight, rel=5e-3, abs=1e-6)
    assert student.grad is not None
    assert student.grad.isfinite().all()


def test_half_precision_autocast_takes_scores_of_ten_thousand() -> None:
    student = torch.tensor([[1e4, 0.0, -1e4]], requires_grad=True)
    with torch.autocast("cpu", dtype=torch.float16):
        value = wsld_loss(student.half(), torch.tensor([[0.0, 1e4, 0.0]]).half(), torch.tensor([1]))
    value.backward()
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(4 * 5e3, rel=1e-3)
    assert student.grad is not None
    assert student.grad.isfinite().all()


def test_a_class_that_the_teacher_gives_no_probability_adds_nothing() -> None:
    student, teacher, target = random(2, 5, seed=1), random(2, 5, seed=2), torch.tensor([0, 4])
    teacher[:, 4] = -math.inf  # the label of the second, so that its teacher has nothing to say
    expected = wsld_loss(student[:1, :4], teacher[:1, :4], target[:1]) / 2
    far = teacher.masked_fill(teacher.isinf(), -1e9)
    torch.testing.assert_close(wsld_loss(student, teacher, target), wsld_loss(student, far, target))
    assert expected > 0


def test_a_single_logit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"wsld_loss: expected at least 2 classes.*\(2, 1\).*kd_loss"):
        wsld_loss(torch.zeros(2, 1), torch.zeros(2, 1), torch.zeros(2, dtype=torch.long))
    with pytest.raises(ValueError, match=r"WSLDLoss: a single logit.*use KDLoss"):
        WSLDLoss().build({"<logits>": (2, 1)}, {"<logits>": (2, 1)})


@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 1, 2)], ids=str)
def test_what_has_no_label_is_as_good_as_absent(shape: tuple[int, ...]) -> None:
    student, teacher = random(*shape, seed=1).requires_grad_(), random(*shape, seed=2)
    target = torch.randint(5, (4, *shape[2:]))
    target[1::2] = -100
    value = wsld_loss(student, teacher, target)
    torch.testing.assert_close(value, wsld_loss(student[::2], teacher[::2], target[::2]))
    value.backward()
    assert student.grad is not None
    assert not student.grad[1::2].any()
    assert student.grad[::2].all()


def test_without_any_label_it_is_zero_and_still_has_a_graph() -> None:
    student = random(3, 4, seed=1).requires_grad_()
    value = wsld_loss(student, random(3, 4, seed=2), torch.full((3,), 7), ignore_index=7)
    value.backward()
    assert value.item() == 0.0
    assert student.grad is not None
    assert not student.grad.any()


@pytest.mark.parametrize("target", [torch.zeros(2, 3), torch.zeros(2), torch.zeros(2, 3, dtype=torch.long)])
def test_a_target_that_holds_no_class_ids_is_refused(target: Tensor) -> None:
    with pytest.raises(ValueError, match=r"wsld_loss: expected class ids of shape \(2,\).*argmax"):
        wsld_loss(torch.zeros(2, 3), torch.zeros(2, 3), target)


def test_a_temperature_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match="wsld_loss: expected temperature > 0"):
        wsld_loss(torch.zeros(1, 2), torch.zeros(1, 2), torch.tensor([0]), temperature=0.0)
    with pytest.raises(ValueError, match="WSLDLoss: expected temperature > 0"):
        WSLDLoss(temperature=-1.0)


def test_the_temperature_may_follow_a_schedule() -> None:
    loss = WSLDLoss(temperature=LinearSchedule(1.0, 3.0, length=2))
    loss.moment = Moment(epoch=1)
    student, teacher, target = random(4, 5, seed=1), random(4, 5, seed=2), torch.tensor([0, 1, 2, 3])
    expected = wsld_loss(student, teacher, target, temperature=2.0)
    torch.testing.assert_close(loss(student, teacher, target=target), expected)


def test_float32_is_exact_for_a_tight_cluster_far_from_zero() -> None:
    features = [tight(8, 10, seed=seed) for seed in (1, 2)]
    check_float32(lambda s, t: wsld_loss(s, t, torch.arange(8), temperature=1.0), features)
