"""Knowledge review: the authors' numbers, and the whole chain of fusions against a straight transcription."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_kd.functional import hcl_loss
from lightning_kd.losses import ReviewKDLoss
from tests.losses.case import random
from tests.losses.golden import Golden, check_golden, golden


@pytest.mark.parametrize("record", golden("review_hcl"), ids=str)
def test_it_equals_the_authors_code(record: Golden) -> None:
    check_golden(record, lambda s, t, _: sum(hcl_loss(*pair) for pair in zip(s, t, strict=True)))


def _naive(student: Tensor, teacher: Tensor) -> float:
    """One cell floor(i H / h) .. ceil((i + 1) H / h) at a time."""
    batch, channels, rows, columns = student.shape
    total, weights, weight = (student - teacher).square().mean().item(), 1.0, 1.0
    for level in (4, 2, 1):
        if level >= max(rows, columns):
            continue
        high, wide, squares = min(level, rows), min(level, columns), 0.0
        for i in range(high):
            for j in range(wide):
                top, bottom = i * rows // high, -(-(i + 1) * rows // high)
                left, right = j * columns // wide, -(-(j + 1) * columns // wide)
                means = [x[:, :, top:bottom, left:right].mean((2, 3)) for x in (student, teacher)]
                squares += (means[0] - means[1]).square().sum().item()
        weight /= 2
        weights += weight
        total += weight * squares / (batch * channels * high * wide)
    return total / weights


@pytest.mark.parametrize("size", [(1, 1), (2, 2), (3, 5), (7, 7), (8, 8), (8, 3), (1, 9), (5, 4), (12, 6), (6, 8)])
def test_it_equals_a_loop_over_all_cells(size: tuple[int, int]) -> None:
    student, teacher = random(2, 3, *size, seed=1), random(2, 3, *size, seed=2)
    assert hcl_loss(student, teacher).item() == pytest.approx(_naive(student, teacher), rel=1e-12)


def test_a_common_shift_counts_fully_at_every_level() -> None:
    student = random(2, 3, 8, 8, seed=1)
    assert hcl_loss(student, student - 3.0).item() == pytest.approx(9.0, rel=1e-12)
    assert hcl_loss(student, student).item() == 0.0


def test_float32_is_exact_for_a_tight_cluster_far_from_zero() -> None:
    student, teacher = (5 + 1e-3 * random(4, 8, 7, 6, seed=seed) for seed in (1, 2))
    found = []
    for dtype in (torch.float64, torch.float32):
        leaf = student.float().to(dtype).requires_grad_()
        loss = hcl_loss(leaf, teacher.float().to(dtype))
        loss.backward()
        found.append((loss.detach().double(), leaf.grad.double()))
    for exact, single in zip(*found, strict=True):
        assert (single - exact).abs().max() <= 1e-4 * exact.abs().max()


def test_an_empty_batch_still_backpropagates() -> None:
    student = torch.zeros(0, 2, 3, 3, requires_grad=True)
    value = hcl_loss(student, torch.zeros(0, 2, 3, 3))
    value.backward()
    assert value.item() == 0.0


def _transcribed(loss: ReviewKDLoss, students: list[Tensor], teachers: list[Tensor]) -> float:
    """The published chain, written out from its description, in train mode."""

    def norm(x: Tensor, layer: torch.nn.BatchNorm2d) -> Tensor:
        mean, variance = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), correction=0, keepdim=True)
        scale, offset = (p.reshape(1, -1, 1, 1) for p in (layer.weight, layer.bias))
        return (x - mean) / (variance + 1e-5).sqrt() * scale + offset

    def nearest(x: Tensor, rows: int, columns: int) -> Tensor:
        i = torch.arange(rows) * x.shape[2] // rows
        j = torch.arange(columns) * x.shape[3] // columns
        return x[:, :, i][:, :, :, j]

    students, teachers = (
        [x.reshape(*x.shape[:2], *(x.shape[2:] or (1, 1))) for x in side] for side in (students, teachers)
    )
    later, total = None, 0.0
    for i in reversed(range(len(students))):
        parts = loss.fusions[i]
        x = norm(torch.einsum("bihw,oi->bohw", students[i], parts.enter.weight[:, :, 0, 0]), parts.enter_norm)
        if later is not None:
            later = nearest(later, *x.shape[2:])
            both = torch.cat([x, later], dim=1)
            scores = torch.einsum("bihw,oi->bohw", both, parts.attention.weight[:, :, 0, 0])
            scores = torch.sigmoid(scores + parts.attention.bias.reshape(1, -1, 1, 1))
            x = x * scores[:, :1] + later * scores[:, 1:]
        later = nearest(x, *teachers[i].shape[2:])
        total += _naive(norm(F.conv2d(later, parts.leave.weight, padding=1), parts.leave_norm), teachers[i])
    return total


@pytest.mark.parametrize("mid_channels", [None, 2])
def test_the_chain_equals_a_straight_transcription(mid_channels: int | None) -> None:
    students = [random(4, 2, 8, 6, seed=1), random(4, 3, 4, 3, seed=2), random(4, 5, seed=3)]
    teachers = [random(4, 3, 7, 9, seed=4), random(4, 2, 4, 3, seed=5), random(4, 4, 1, 1, seed=6)]
    loss = ReviewKDLoss(list("abc"), list("def"), mid_channels=mid_channels)
    shapes = [
        dict(zip(names, (tuple(x.shape) for x in side), strict=True))
        for names, side in (("abc", students), ("def", teachers))
    ]
    loss.build(*shapes)
    loss.double()
    with torch.no_grad():
        for parameter in loss.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    expected = _transcribed(loss, students, teachers)
    assert loss(students, teachers).item() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize(("width", "expected"), [(16, 16), (700, 512)])
def test_the_stages_are_fused_in_the_channels_of_the_last(width: int, expected: int) -> None:
    loss = ReviewKDLoss(["a", "b"], ["c", "d"])
    loss.build({"a": (2, 8, 4, 4), "b": (2, width, 2, 2)}, {"c": (2, 8, 4, 4), "d": (2, 8, 2, 2)})
    assert [fusion.enter.out_channels for fusion in loss.fusions] == [expected] * 2
    assert [fusion.attention is None for fusion in loss.fusions] == [False, True]


def test_convolutions_start_as_in_the_published_code() -> None:
    loss = ReviewKDLoss(["a", "b"], ["c", "d"])
    loss.build({"a": (2, 48, 4, 4), "b": (2, 64, 2, 2)}, {"c": (2, 64, 4, 4), "d": (2, 64, 2, 2)})
    for fusion in loss.fusions:
        for layer in (fusion.enter, fusion.leave):
            bound = (3 / layer.weight[0].numel()) ** 0.5
            assert layer.weight.abs().max().item() == pytest.approx(bound, rel=0.01)
            assert layer.bias is None


def test_every_stage_learns_from_the_first_of_the_teacher() -> None:
    """The early teacher reaches the late student, not the other way round."""
    students = [random(4, 2, 4, 4, seed=1), random(4, 3, 2, 2, seed=2)]
    teachers = [random(4, 2, 4, 4, seed=3), random(4, 3, 2, 2, seed=4)]
    loss = ReviewKDLoss(["a", "b"], ["c", "d"])
    loss.build({"a": (4, 2, 4, 4), "b": (4, 3, 2, 2)}, {"c": (4, 2, 4, 4), "d": (4, 3, 2, 2)})
    loss.double()

    def gradients(changed: int) -> list[Tensor]:
        leaves = [s.clone().requires_grad_() for s in students]
        changed_teachers = [t + (i == changed) * random(*t.shape, seed=9) for i, t in enumerate(teachers)]
        copy.deepcopy(loss)(leaves, changed_teachers).backward()
        return [leaf.grad for leaf in leaves]

    neither, early, late = (gradients(i) for i in (-1, 0, 1))
    assert not torch.allclose(early[1], neither[1])
    assert torch.equal(late[0], neither[0])


@pytest.mark.parametrize("names", [["a"], []])
def test_fewer_than_two_stages_are_refused(names: list[str]) -> None:
    shapes = dict.fromkeys(names, (2, 3, 4, 4))
    with pytest.raises(ValueError, match="ReviewKDLoss: expected at least two layers of each network"):
        ReviewKDLoss(names, names).build(shapes, shapes)


def test_no_channels_are_refused() -> None:
    with pytest.raises(ValueError, match="expected a whole number mid_channels >= 1, got 0"):
        ReviewKDLoss(mid_channels=0)
