"""Normalized distillation: the authors' numbers, the definition sample by sample, missing labels, certain networks."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_kd.functional import dkd_loss, nkd_loss
from lightning_kd.losses import NKDLoss
from lightning_kd.schedules import LinearSchedule, Moment
from tests.losses.case import check_float32, random, tight
from tests.losses.golden import Golden, check_golden, golden


@pytest.mark.parametrize("record", golden("nkd", "", "__cifar", "__target"), ids=str)
def test_it_equals_the_authors_code(record: Golden) -> None:
    options = {"gamma": record.hyper["gamma"], "temperature": record.hyper["T"]}
    check_golden(record, lambda s, t, rest: nkd_loss(s[0], t[0], rest["labels"], **options))


def loop(student: Tensor, teacher: Tensor, target: Tensor, gamma: float, temperature: float) -> Tensor:
    """Sample by sample from the definition."""
    values = []
    for z, v, y in zip(student, teacher, target, strict=True):
        keep = torch.arange(len(z)) != y
        p, q = ((logits[keep] / temperature).softmax(0) for logits in (z, v))
        of_others = (q * p.log()).sum()
        values.append(-v.softmax(0)[y] * z.softmax(0)[y].log() - gamma * temperature**2 * of_others)
    return torch.stack(values).mean()


@pytest.mark.parametrize("shape", [(3, 2), (5, 7), (2, 3, 3, 1), (1, 4, 2, 2, 3)], ids=str)
def test_it_equals_a_loop_over_samples(shape: tuple[int, ...]) -> None:
    student, teacher = (2 * random(*shape, seed=seed) for seed in (1, 2))
    target = torch.randint(shape[1], (shape[0], *shape[2:]))
    flat = [z.movedim(1, -1).reshape(-1, shape[1]) for z in (student, teacher)]
    expected = loop(*flat, target.flatten(), 3.0, 2.5)
    torch.testing.assert_close(nkd_loss(student, teacher, target, gamma=3.0, temperature=2.5), expected)


def test_the_others_have_the_gradient_of_decoupled_distillation() -> None:
    """A cross entropy and a divergence differ by what does not depend on the student."""
    teacher, target = random(4, 6, seed=2), torch.tensor([4, 0, 1, 5])
    slopes = []
    for loss, options in ((nkd_loss, {"gamma": 2.0}), (dkd_loss, {"alpha": 0.0, "beta": 2.0})):
        student = random(4, 6, seed=1).requires_grad_()
        value = loss(student, teacher, target, temperature=3.0, **options)
        if loss is nkd_loss:
            value = value - nkd_loss(student, teacher, target, gamma=0.0)
        slopes.append(torch.autograd.grad(value, student)[0])
    torch.testing.assert_close(*slopes)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("gap", [1000.0, -1000.0, 1e4, 3e4])
@pytest.mark.parametrize("classes", [2, 3, 10])
def test_a_gap_of_a_thousand_has_a_finite_gradient(classes: int, gap: float, dtype: torch.dtype) -> None:
    student = torch.zeros(1, classes, dtype=dtype)
    student[0, 0] = gap
    teacher = -student
    student.requires_grad_()
    value = nkd_loss(student, teacher, torch.tensor([0]), gamma=2.0)
    value.backward()
    # The others are all alike, an entropy of ln (C - 1). A teacher that is certain of the target costs a student that
    # is certain of another class its gap too; a teacher that gives the target nothing asks nothing of it.
    wrong = -gap + math.log(classes - 1) if gap < 0 else 0.0
    assert value.item() == pytest.approx(wrong + 2 * math.log(classes - 1), rel=5e-3 if gap < 0 else 1e-6)
    assert student.grad is not None
    assert student.grad.isfinite().all()
    assert student.grad[0, 0].item() == pytest.approx(-1.0 if gap < 0 else 0.0, abs=1e-6)


def test_half_precision_autocast_takes_scores_of_ten_thousand() -> None:
    student = torch.tensor([[1e4, 0.0, -1e4]], requires_grad=True)
    with torch.autocast("cpu", dtype=torch.float16):
        value = nkd_loss(student.half(), torch.tensor([[0.0, 1e4, 0.0]]).half(), torch.tensor([1]))
    value.backward()
    assert value.dtype == torch.float32
    # the target's probability 1 times its 1e4, and of the others half of each of 0 and 2e4
    assert value.item() == pytest.approx(1e4 + 1.5 * 1e4, rel=1e-3)
    assert student.grad is not None
    assert student.grad.isfinite().all()


def test_a_class_that_the_teacher_gives_no_probability_adds_nothing() -> None:
    student, teacher, target = random(2, 5, seed=1), random(2, 5, seed=2), torch.tensor([0, 1])
    teacher[:, 4] = -math.inf
    far = teacher.clone()
    far[:, 4] = -1e4
    torch.testing.assert_close(nkd_loss(student, teacher, target), nkd_loss(student, far, target))


def test_a_single_logit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"nkd_loss: expected at least 2 classes.*\(2, 1\).*kd_loss"):
        nkd_loss(torch.zeros(2, 1), torch.zeros(2, 1), torch.zeros(2, dtype=torch.long))
    with pytest.raises(ValueError, match=r"NKDLoss: a single logit.*use KDLoss"):
        NKDLoss().build({"<logits>": (2, 1)}, {"<logits>": (2, 1)})


@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 1, 2)], ids=str)
def test_what_has_no_label_is_as_good_as_absent(shape: tuple[int, ...]) -> None:
    student, teacher = random(*shape, seed=1).requires_grad_(), random(*shape, seed=2)
    target = torch.randint(5, (4, *shape[2:]))
    target[1::2] = -100
    value = nkd_loss(student, teacher, target)
    torch.testing.assert_close(value, nkd_loss(student[::2], teacher[::2], target[::2]))
    value.backward()
    assert student.grad is not None
    assert not student.grad[1::2].any()
    assert student.grad[::2].all()


def test_without_any_label_it_is_zero_and_still_has_a_graph() -> None:
    student = random(3, 4, seed=1).requires_grad_()
    value = nkd_loss(student, random(3, 4, seed=2), torch.full((3,), 7), ignore_index=7)
    value.backward()
    assert value.item() == 0.0
    assert student.grad is not None
    assert not student.grad.any()


@pytest.mark.parametrize("target", [torch.zeros(2, 3), torch.zeros(2), torch.zeros(2, 3, dtype=torch.long)])
def test_a_target_that_holds_no_class_ids_is_refused(target: Tensor) -> None:
    with pytest.raises(ValueError, match=r"nkd_loss: expected class ids of shape \(2,\).*argmax"):
        nkd_loss(torch.zeros(2, 3), torch.zeros(2, 3), target)


@pytest.mark.parametrize("option", [{"gamma": -1.0}, {"temperature": 0.0}], ids=str)
def test_a_factor_out_of_range_is_refused(option: dict[str, float]) -> None:
    name = next(iter(option))
    with pytest.raises(ValueError, match=f"nkd_loss: expected .*{name}"):
        nkd_loss(torch.zeros(1, 2), torch.zeros(1, 2), torch.tensor([0]), **option)
    with pytest.raises(ValueError, match=f"NKDLoss: expected .*{name}"):
        NKDLoss(**option)


def test_every_factor_may_follow_a_schedule() -> None:
    schedule = LinearSchedule(1.0, 3.0, length=2)
    loss = NKDLoss(gamma=schedule, temperature=schedule)
    loss.moment = Moment(epoch=1)
    student, teacher, target = random(4, 5, seed=1), random(4, 5, seed=2), torch.tensor([0, 1, 2, 3])
    expected = nkd_loss(student, teacher, target, gamma=2.0, temperature=2.0)
    torch.testing.assert_close(loss(student, teacher, target=target), expected)


def test_float32_is_exact_for_a_tight_cluster_far_from_zero() -> None:
    check_float32(lambda s, t: nkd_loss(s, t, torch.arange(8)), [tight(8, 10, seed=seed) for seed in (1, 2)])


def test_it_is_cross_entropy_if_the_teacher_is_always_right() -> None:
    target = torch.tensor([2, 0, 1])
    certain = 1e4 * F.one_hot(target, 4).double()
    student = random(3, 4, seed=1)
    torch.testing.assert_close(nkd_loss(student, certain, target, gamma=0.0), F.cross_entropy(student, target))
