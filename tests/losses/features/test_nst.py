"""Neuron selectivity: the authors' numbers, the pairwise definition, and what the loss does not see."""

import pytest
import torch

from lightning_kd.functional import nst_loss
from tests.losses.case import check_float32, random, tight
from tests.losses.golden import Golden, check_golden, golden

KERNELS = ("polynomial", "linear", "gaussian")


@pytest.mark.parametrize("record", golden("nst", ""), ids=str)
def test_it_equals_the_authors_code(record: Golden) -> None:
    check_golden(record, lambda s, t, _: nst_loss(s[0], t[0]))


@pytest.mark.parametrize("size", [(2, 2), (4, 5)])
@pytest.mark.parametrize("kernel", KERNELS)
def test_it_equals_a_loop_over_all_pairs_of_channels(kernel: str, size: tuple[int, int]) -> None:
    student, teacher = random(2, 3, *size, seed=1), random(2, 6, *size, seed=2)
    unit = [[[c.flatten() / c.norm() for c in sample] for sample in features] for features in (student, teacher)]
    variance = sum((x - y).square().sum() for s, t in zip(*unit, strict=True) for x in s for y in t) / (2 * 3 * 6)
    formula = {
        "polynomial": lambda x, y: (x @ y) ** 2,
        "linear": lambda x, y: x @ y,
        "gaussian": lambda x, y: torch.exp(-(x - y).square().sum() / (2 * variance)),
    }[kernel]

    def mean(one, other):
        return sum(formula(x, y) for x in one for y in other) / (len(one) * len(other))

    expected = sum(mean(s, s) + mean(t, t) - 2 * mean(s, t) for s, t in zip(*unit, strict=True)) / 2
    torch.testing.assert_close(nst_loss(student, teacher, kernel=kernel), expected)


@pytest.mark.parametrize("kernel", KERNELS)
def test_it_sees_neither_the_order_nor_the_scale_of_channels(kernel: str) -> None:
    student, teacher = random(3, 4, 3, 2, seed=1), random(3, 5, 3, 2, seed=2)
    scale = torch.rand(1, 4, 1, 1, dtype=torch.float64) + 0.5
    changed = nst_loss((scale * student)[:, torch.randperm(4)], teacher, kernel=kernel)
    torch.testing.assert_close(changed, nst_loss(student, teacher, kernel=kernel))


@pytest.mark.parametrize("size", [(2, 2), (6, 5)])
def test_float32_is_exact_for_a_tight_cluster_far_from_zero(size: tuple[int, int]) -> None:
    check_float32(nst_loss, [tight(4, 8, *size, seed=seed) for seed in (1, 2)])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"kernel": "cubic"}, "expected kernel 'polynomial', 'linear' or 'gaussian', got 'cubic'"),
        ({"bandwidth": 1.0}, "bandwidth has no effect on the polynomial kernel"),
        ({"kernel": "gaussian", "bandwidth": 0.0}, "expected bandwidth > 0, got 0"),
    ],
)
def test_a_setting_that_cannot_be_is_refused(options: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        nst_loss(random(1, 1, 1, 2, seed=1), random(1, 1, 1, 2, seed=2), **options)
