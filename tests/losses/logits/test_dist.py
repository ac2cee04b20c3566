"""DIST: the authors' numbers, the definition sample by sample, and probabilities that do not vary."""

import math

import numpy as np
import pytest
import torch

from lightning_kd.functional import dist_loss
from lightning_kd.losses import DISTLoss
from lightning_kd.schedules import LinearSchedule, Moment
from tests.losses.case import check_float32, random, tight
from tests.losses.golden import Golden, check_golden, golden


@pytest.mark.parametrize("record", golden("dist", "__tau1", "__tau4"), ids=str)
def test_it_equals_the_published_code(record: Golden) -> None:
    options = {"beta": record.hyper["beta"], "gamma": record.hyper["gamma"], "temperature": record.hyper["tau"]}
    check_golden(record, lambda s, t, _: dist_loss(s[0], t[0], **options))


@pytest.mark.parametrize("shape", [(3, 7), (7, 3), (2, 3, 3, 1), (1, 4, 2, 2, 3)], ids=str)
def test_it_equals_a_loop_over_samples_and_classes(shape: tuple[int, ...]) -> None:
    student, teacher = (2 * random(*shape, seed=seed) for seed in (1, 2))
    p, q = ((z / 2.5).softmax(1).movedim(1, -1).reshape(-1, shape[1]).numpy() for z in (student, teacher))
    rows = np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(p, q, strict=True)])
    columns = np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(p.T, q.T, strict=True)])
    expected = 2.5**2 * (0.5 * (1 - rows) + 3.0 * (1 - columns))
    value = dist_loss(student, teacher, beta=0.5, gamma=3.0, temperature=2.5)
    assert value.item() == pytest.approx(expected, rel=1e-10)


def test_within_samples_neither_size_nor_offset_of_the_probabilities_counts() -> None:
    teacher = random(4, 5, seed=2)
    student = (0.3 * teacher.softmax(1) + 0.7 / 5).log()
    assert dist_loss(student, teacher).item() == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize(("batch", "classes"), [(1, 4), (4, 2), (8, 10), (16, 1000), (300, 7)])
def test_a_student_that_knows_nothing_gets_a_gradient_of_ordinary_size(
    batch: int, classes: int, dtype: torch.dtype
) -> None:
    student = torch.full((batch, classes), 0.3, dtype=dtype, requires_grad=True)
    teacher = 3 * random(batch, classes, seed=1).to(dtype)
    value = dist_loss(student, teacher, beta=2.0, gamma=3.0)
    value.backward()
    assert value.item() == pytest.approx(5.0, rel=1e-5)
    assert student.grad is not None
    assert 0 < student.grad.abs().max() < 10


def test_a_student_that_knows_nothing_learns_what_the_teacher_prefers() -> None:
    student, teacher = torch.zeros(4, 10, requires_grad=True), random(4, 10, seed=1).float()
    dist_loss(student, teacher, gamma=0.0).backward()
    assert student.grad is not None
    assert torch.equal(student.grad.argmin(1), teacher.argmax(1))


def test_a_teacher_that_knows_nothing_teaches_nothing() -> None:
    student = random(4, 5, seed=1).requires_grad_()
    value = dist_loss(student, torch.ones(4, 5, dtype=torch.float64))
    value.backward()
    assert value.item() == pytest.approx(2.0, abs=1e-12)
    assert student.grad is not None
    assert student.grad.abs().max() < 1e-8


def test_one_constant_class_among_others_is_finite() -> None:
    # p of the first class is 1/2 in both samples: its column has no deviation, the other two correlate fully
    student = torch.tensor([[0.5, 0.2, 0.3], [0.5, 0.4, 0.1]], dtype=torch.float64).log().requires_grad_()
    teacher = torch.tensor([[0.1, 0.3, 0.6], [0.3, 0.6, 0.1]], dtype=torch.float64).log()
    value = dist_loss(student, teacher, beta=0.0)
    value.backward()
    assert value.item() == pytest.approx(1 - 2 / 3, abs=1e-10)
    assert student.grad is not None
    assert student.grad.abs().max() < 10


def test_an_empty_batch_still_backpropagates() -> None:
    student = torch.zeros(0, 5, requires_grad=True)
    value = dist_loss(student, torch.zeros(0, 5))
    value.backward()
    assert value.item() == 0.0


def test_float32_is_exact_for_a_tight_cluster_far_from_zero() -> None:
    check_float32(dist_loss, [tight(8, 10, seed=seed) for seed in (1, 2)])


@pytest.mark.parametrize("option", [{"beta": -1.0}, {"gamma": math.nan}, {"temperature": 0.0}], ids=str)
def test_a_factor_out_of_range_is_refused(option: dict[str, float]) -> None:
    name = next(iter(option))
    with pytest.raises(ValueError, match=f"dist_loss: expected .*{name}"):
        dist_loss(torch.zeros(1, 2), torch.zeros(1, 2), **option)
    with pytest.raises(ValueError, match=f"DISTLoss: expected .*{name}"):
        DISTLoss(**option)


def test_every_factor_may_follow_a_schedule() -> None:
    schedule = LinearSchedule(1.0, 3.0, length=2)
    loss = DISTLoss(beta=schedule, gamma=schedule, temperature=schedule)
    loss.moment = Moment(epoch=1)
    student, teacher = random(4, 5, seed=1), random(4, 5, seed=2)
    torch.testing.assert_close(
        loss(student, teacher), dist_loss(student, teacher, beta=2.0, gamma=2.0, temperature=2.0)
    )


def test_it_compares_samples() -> None:
    assert DISTLoss.relational
    assert DISTLoss().gather
    assert not DISTLoss(gather=False).options()["gather"]


def test_a_single_logit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"dist_loss: expected at least 2 classes.*\(2, 1\)"):
        dist_loss(torch.zeros(2, 1), torch.zeros(2, 1))
    with pytest.raises(ValueError, match=r"DISTLoss: a single logit.*use KDLoss"):
        DISTLoss().build({"<logits>": (2, 1)}, {"<logits>": (2, 1)})
