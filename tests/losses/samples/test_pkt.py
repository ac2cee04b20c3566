"""Probabilistic transfer: the authors' numbers, and probabilities that are some."""

import pytest
import torch

from lightning_kd.functional import mmd_loss, moment_matching_loss, pkt_loss
from lightning_kd.losses import PKTLoss
from lightning_kd.losses.samples.pkt import _neighbours
from tests.losses.case import check_float32, random, tight
from tests.losses.golden import Golden, check_golden, golden


@pytest.mark.parametrize("record", golden("pkt", ""), ids=str)
def test_it_equals_the_authors_code(record: Golden) -> None:
    check_golden(record, lambda s, t, _: pkt_loss(s[0], t[0], eps=record.hyper["eps"]))


def test_the_rows_sum_to_one() -> None:
    torch.testing.assert_close(_neighbours(random(5, 3, seed=1), 1e-7).sum(dim=1), torch.ones(5).double())


def test_a_sample_of_zeros_has_a_finite_gradient() -> None:
    student = torch.zeros(3, 4, requires_grad=True)
    pkt_loss(student, random(3, 4, seed=1).float()).backward()
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("function", [mmd_loss, moment_matching_loss])
def test_equal_batches_have_no_distance_in_any_order(function) -> None:
    student = random(6, 3, seed=1)
    assert function(student, student).item() == pytest.approx(0.0, abs=1e-14)
    assert function(student, student.flip(0)).item() == pytest.approx(0.0, abs=1e-14)
    assert function(student, 1.01 * student).item() > 0


def test_discrepancy_equals_a_loop_over_all_pairs() -> None:
    student, teacher = random(5, 3, seed=1), random(5, 3, seed=2)
    variance = sum((s - t).square().sum() for s in student for t in teacher) / 25

    def mean(one, other):
        return sum(torch.exp(-(x - y).square().sum() / (2 * variance)) for x in one for y in other) / 25

    expected = mean(student, student) + mean(teacher, teacher) - 2 * mean(student, teacher)
    torch.testing.assert_close(mmd_loss(student, teacher), expected)


@pytest.mark.parametrize("width", [3, 17])
def test_moments_equal_those_of_torch(width: int) -> None:
    student, teacher = random(5, width, seed=1), random(5, width, seed=2)
    means = (student.mean(0) - teacher.mean(0)).square().mean()
    covariances = [torch.cov(x.T, correction=0) for x in (student, teacher)]
    expected = means + (covariances[0] - covariances[1]).square().mean()
    torch.testing.assert_close(moment_matching_loss(student, teacher), expected)


@pytest.mark.parametrize("function", [mmd_loss, moment_matching_loss])
@pytest.mark.parametrize("width", [8, 64])
def test_float32_is_exact_for_a_tight_cluster_far_from_zero(function, width: int) -> None:
    check_float32(function, [tight(8, width, seed=seed, offset=50.0) for seed in (1, 2)])


def test_unequal_widths_get_a_trained_projector_in_one_space_only() -> None:
    shapes = {"a": (8, 3)}, {"b": (8, 5)}
    for mode, count in (("cosine", 0), ("mmd", 2), ("moments", 2)):
        component = PKTLoss("a", "b", mode=mode)
        component.build(*shapes)
        assert len(list(component.parameters())) == count
        assert component(random(8, 3, seed=1).float(), random(8, 5, seed=2).float()).isfinite()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mode": "gaussian"}, "expected mode 'cosine', 'mmd' or 'moments', got 'gaussian'"),
        ({"bandwidth": 1.0}, "bandwidth has no effect in the mode 'cosine'"),
        ({"mode": "mmd", "bandwidth": 0.0}, "expected bandwidth > 0, got 0"),
    ],
)
def test_a_setting_that_cannot_be_is_refused(options: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        PKTLoss("a", "b", **options)
