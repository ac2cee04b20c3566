"""Singular value decomposition: the numbers of published code, the slope, and what the loss does not see."""

from itertools import pairwise

import pytest
import torch

from lightning_kd.functional import kdsvd_loss
from lightning_kd.losses import KDSVDLoss
from tests.losses.case import check_float32, random
from tests.losses.golden import Golden, check_golden, golden


@pytest.mark.parametrize("record", golden("kdsvd"), ids=str)
def test_it_equals_repdistillers_code(record: Golden) -> None:
    k = record.hyper["k"]

    def value(students, teachers, _):
        steps = zip(pairwise(students), pairwise(teachers), strict=True)
        return sum(kdsvd_loss(*mine, *its, k=k) for mine, its in steps)

    check_golden(record, value)


def maps(*size: int, seed: int) -> torch.Tensor:
    return 0.5 + random(*size, seed=seed).abs()


def four() -> list[torch.Tensor]:
    """Two maps of the student and two of the teacher."""
    return [maps(3, 4, 2, 5, seed=1), maps(3, 6, 3, 2, seed=2), maps(3, 4, 2, 5, seed=3), maps(3, 6, 3, 2, seed=4)]


def test_it_sees_neither_the_scale_nor_the_sign_nor_the_order_of_positions() -> None:
    bottom, top, teacher_bottom, teacher_top = four()
    changed = kdsvd_loss(-3 * bottom.flip(3), 0.1 * top.mT, teacher_bottom.flip(2), -teacher_top, k=2)
    torch.testing.assert_close(changed, kdsvd_loss(bottom, top, teacher_bottom, teacher_top, k=2))


@pytest.mark.parametrize("k", [1, 2])
def test_the_gradient_is_that_of_a_power_iteration(k: int) -> None:
    """An independent way to the first vectors: a differentiable power iteration with deflation."""

    def vectors(features: torch.Tensor, count: int) -> list[torch.Tensor]:
        matrix = features.flatten(2).mT
        square, found = matrix.mT @ matrix, []
        for _ in range(count):
            v = torch.ones(len(features), features.shape[1], 1, dtype=torch.float64) + 0.3 * random(
                1, features.shape[1], 1, seed=9
            )
            for _ in range(400):
                v = square @ v
                v = v / v.norm(dim=1, keepdim=True)
            found.append(v)
            square = square - (v.mT @ square @ v) * v @ v.mT
        return found

    *students, teacher_bottom, teacher_top = four()
    leaves = [one.requires_grad_() for one in students]
    kernels = []
    for student, teacher in zip(leaves, (teacher_bottom, teacher_top), strict=True):
        values = torch.linalg.svdvals(teacher.flatten(2))[:, :k]
        lengths = values / values.norm(dim=1, keepdim=True)
        its = [v * torch.where(v.sum(1, keepdim=True) < 0, -1.0, 1.0) for v in vectors(teacher, k)]
        near = vectors(student, min(k + 3, student.shape[1]))
        mine = []
        for direction in its:
            cosines = torch.cat([(v * direction).sum(1) for v in near], dim=1)
            which = cosines.abs().argmax(1)
            mine.append(torch.stack([near[w][b] * cosines[b, w].detach().sign() for b, w in enumerate(which.tolist())]))
        kernels.append([torch.cat(side, dim=2) * lengths.unsqueeze(1) for side in (mine, its)])
    (bottom, its_bottom), (top, its_top) = kernels
    both = [torch.exp(-((t.unsqueeze(2) - b.unsqueeze(1)) ** 2) / 8) for b, t in ((bottom, top), (its_bottom, its_top))]
    expected = ((both[0] - both[1]) ** 2).sum() / 3
    value = kdsvd_loss(*leaves, teacher_bottom, teacher_top, k=k)
    torch.testing.assert_close(value, expected, rtol=1e-7, atol=0.0)
    ours, theirs = (torch.autograd.grad(one, leaves) for one in (value, expected))
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-7 * other.abs().max().item())


def test_float32_is_that_of_float64() -> None:
    check_float32(kdsvd_loss, four(), learning=2)


def test_a_sample_of_zeros_of_the_teacher_says_nothing() -> None:
    bottom, top, teacher_bottom, teacher_top = four()
    teacher_bottom[1], teacher_top[1] = 0.0, 0.0
    value = kdsvd_loss(bottom, top, teacher_bottom, teacher_top)
    left = [one[[0, 2]] for one in (bottom, top, teacher_bottom, teacher_top)]
    torch.testing.assert_close(value, kdsvd_loss(*left) * 2 / 3)


@pytest.mark.parametrize("which", [1, 3])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_value_that_is_not_finite_makes_the_loss_nan_and_raises_nothing(bad: float, which: int) -> None:
    maps_of_both = four()
    maps_of_both[which][1, 0, 0, 0] = bad
    assert kdsvd_loss(*maps_of_both).isnan()


def test_equal_singular_values_have_a_finite_gradient() -> None:
    top = torch.eye(4, dtype=torch.float64).reshape(1, 4, 2, 2).requires_grad_()
    kdsvd_loss(torch.ones_like(top), top, maps(1, 4, 2, 2, seed=1), maps(1, 4, 2, 2, seed=2), k=2).backward()
    assert top.grad.isfinite().all()


@pytest.mark.parametrize("k", [0, -1])
def test_at_least_one_vector_is_compared(k: int) -> None:
    with pytest.raises(ValueError, match=f"KDSVDLoss: expected a whole number k >= 1, got {k}"):
        KDSVDLoss(k=k)
    with pytest.raises(ValueError, match=f"kdsvd_loss: expected a whole number k >= 1, got {k}"):
        kdsvd_loss(*four(), k=k)


def test_one_layer_has_no_neighbour() -> None:
    shapes = {"a": (4, 3, 2, 2)}
    with pytest.raises(ValueError, match="KDSVDLoss: expected at least two layers of each network"):
        KDSVDLoss("a", "a").build(shapes, shapes)
