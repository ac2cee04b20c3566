"""Relational distillation: the authors' numbers, the definition in loops, and what the loss does not see."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_kd.functional import rkd_loss
from lightning_kd.losses.samples import rkd
from tests.losses.case import check_float32, random, tight
from tests.losses.golden import Golden, check_golden, golden

TWO_SAMPLES = "c2"  # of which distances and angles are always the same


@pytest.mark.parametrize(
    "record", [g for g in golden("rkd", "", "__dist", "__angle") if g.case != TWO_SAMPLES], ids=str
)
def test_rkd_equals_the_authors_code(record: Golden) -> None:
    factors = {"distance_weight": record.hyper["w_d"], "angle_weight": record.hyper["w_a"]}
    check_golden(record, lambda s, t, _: rkd_loss(s[0], t[0], **factors))


def test_rkd_of_two_samples_is_zero() -> None:
    (record,) = [g for g in golden("rkd", "") if g.case == TWO_SAMPLES]
    student = record.arrays["s0"].clone().requires_grad_()
    loss = rkd_loss(student, record.arrays["t0"])
    loss.backward()
    assert record.arrays["loss"] == 0.0
    assert loss.item() < 1e-25
    assert student.grad.abs().max() < 1e-12


def rkd_in_loops(student: Tensor, teacher: Tensor) -> Tensor:
    """25 times the distances and 50 times the angles, sample by sample."""
    size = len(student)
    distances, angles = [], []
    for x in (student, teacher):
        own = [[(x[i] - x[j]).norm() if i != j else x[0, 0] * 0 for j in range(size)] for i in range(size)]
        mean = sum(d for row in own for d in row) / (size * (size - 1))
        distances.append([d / mean for row in own for d in row])
        ways = [[F.normalize(x[j] - x[i], dim=0) if i != j else 0 * x[i] for j in range(size)] for i in range(size)]
        angles.append([ways[i][j] @ ways[i][k] for i in range(size) for j in range(size) for k in range(size)])
    return sum(
        weight * sum(F.smooth_l1_loss(s, t) for s, t in zip(*pair, strict=True)) / size**power
        for weight, power, pair in ((25, 2, distances), (50, 3, angles))
    )


def test_rkd_equals_loops_over_all_tuples_value_and_gradient() -> None:
    teacher = random(7, 4, seed=2)
    grads = []
    for function in (rkd_loss, rkd_in_loops):
        student = random(7, 3, seed=1).requires_grad_()
        loss = function(student, teacher)
        loss.backward()
        grads.append((loss.detach(), student.grad))
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_rkd_does_not_depend_on_how_many_samples_a_block_has(monkeypatch: pytest.MonkeyPatch) -> None:
    from lightning_kd.losses.samples import rkd as relation

    values = []
    for corners in (7, 3, 1):
        monkeypatch.setattr(relation, "_corners_at_once", lambda _, corners=corners: corners)
        student = random(7, 3, seed=1).requires_grad_()
        rkd_loss(student, random(7, 4, seed=2)).backward()
        values.append(student.grad)
    torch.testing.assert_close(values[1], values[0])
    torch.testing.assert_close(values[2], values[0])


def test_rkd_does_not_see_where_the_student_lies_how_it_is_turned_and_how_large_it_is() -> None:
    student, teacher = random(6, 5, seed=1), random(6, 4, seed=2)
    turn = torch.linalg.qr(random(5, 5, seed=3)).Q
    expected = rkd_loss(student, teacher)
    for changed in (student @ turn, student + 7.0, 3.0 * student, 0.2 * student @ turn - 4.0):
        torch.testing.assert_close(rkd_loss(changed, teacher), expected)


@pytest.mark.parametrize("offset", [10.0, 100.0])
@pytest.mark.parametrize(
    "function",
    [
        rkd_loss,
        lambda s, t: rkd_loss(s, t, distance_weight=0.0),
        lambda s, t: rkd_loss(s, t, angle_weight=0.0),
    ],
    ids=["rkd", "angles", "distances"],
)
def test_float32_is_exact_for_a_tight_cluster_far_from_zero(function, offset: float) -> None:
    check_float32(function, [tight(16, 32, seed=seed, offset=offset) for seed in (1, 2)])


def test_two_clusters_far_apart_keep_the_angles_within_each() -> None:
    centres = torch.tensor([[0.0], [100.0]], dtype=torch.float64).repeat(4, 8)
    student, teacher = ((centres + 1e-3 * random(8, 8, seed=seed)).float() for seed in (1, 2))
    single, exact = rkd_loss(student, teacher), rkd_in_loops(student.double(), teacher.double())
    assert single.item() == pytest.approx(exact.item(), rel=1e-4)


def test_equal_samples_have_no_angle_and_a_finite_gradient() -> None:
    student = random(5, 64, seed=1).float()
    student[3] = student[1]
    student.requires_grad_()
    loss = rkd_loss(student, random(5, 3, seed=2).float())
    loss.backward()
    assert loss.item() == pytest.approx(rkd_in_loops(student.double(), random(5, 3, seed=2)).item(), rel=1e-5)
    assert student.grad.abs().max() < 100


def test_a_negative_factor_is_refused() -> None:
    with pytest.raises(ValueError, match="expected a finite angle_weight >= 0, got -1"):
        rkd_loss(random(2, 2, seed=1), random(2, 2, seed=2), angle_weight=-1.0)


@pytest.mark.parametrize("size", [1, 2, 7, 16, 21])
@pytest.mark.parametrize("close", [False, True])
def test_tiles_give_what_whole_tables_give(size: int, close: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many samples go tile by tile; here tiles of 8 and 3 corners at a time, which do not divide the batch."""
    student, teacher = (5 + (1e-3 if close else 1.0) * random(size, 3, seed=seed) for seed in (1, 2))
    student[-1] = student[0]  # two equal samples
    found = []
    for many in (10**9, 1):
        monkeypatch.setattr(rkd, "_MANY", many)
        monkeypatch.setattr(rkd, "_TILE", 8)
        monkeypatch.setattr(rkd, "_CORNERS", 3)
        leaf = student.clone().requires_grad_()
        value = rkd_loss(leaf, teacher)
        (gradient,) = torch.autograd.grad(value, leaf)
        found.append((value.detach(), gradient))
    for whole, tiled in zip(*found, strict=True):
        torch.testing.assert_close(tiled, whole, rtol=1e-12, atol=1e-12 * whole.abs().max().item())


def test_buffers_serve_all_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    student, teacher = random(9, 3, seed=1), random(9, 4, seed=2)
    whole = rkd_loss(student, teacher)
    monkeypatch.setattr(rkd, "_corners_at_once", lambda _: 4)  # blocks of 4, 4 and 1
    torch.testing.assert_close(rkd_loss(student, teacher), whole, rtol=1e-14, atol=0.0)
