"""The exact binomial tests against sums of fractions, and the rate of false alarms on healthy teachers."""

from fractions import Fraction
from math import comb

import pytest
import torch

from lightning_kd.doctor.binomial import at_most, surely_above, surely_below
from lightning_kd.doctor.classes import ClassCounts


@pytest.mark.parametrize(("hits", "rows", "rate"), [(0, 5, 0.25), (3, 10, 0.5), (7, 9, 0.875), (40, 200, 0.125)])
def test_the_probability_is_the_sum_of_its_terms(hits, rows, rate):
    p = Fraction(rate)
    exact = sum(comb(rows, k) * p**k * (1 - p) ** (rows - k) for k in range(hits + 1))
    assert at_most(hits, rows, rate) == pytest.approx(float(exact), rel=1e-10)


def test_the_edges_are_certain():
    assert at_most(3, 3, 0.5) == at_most(0, 4, 0.0) == 1.0
    assert at_most(2, 3, 1.0) == 0.0
    assert not surely_below(0, 0, 0.5)
    assert not surely_above(0, 0, 0.5)


@pytest.mark.parametrize("classes", [2, 10, 100])
@pytest.mark.parametrize("batch", [4, 64])
def test_a_teacher_just_better_than_a_guess_is_seldom_warned_of(classes, batch):
    # 300 fits of a teacher at the very border: one in a thousand may be warned of, so that 3 happen in 1 of 250 tests
    generator = torch.Generator().manual_seed(0)
    alarms = 0
    for _ in range(300):
        counts = ClassCounts(classes)
        target = torch.randint(0, classes, (4 * batch,), generator=generator)
        right = torch.rand(4 * batch, generator=generator) < counts.hardly
        named = torch.where(
            right, target, (target + torch.randint(1, classes, target.shape, generator=generator)) % classes
        )
        counts.add(torch.nn.functional.one_hot(named, classes).float(), target)
        alarms += bool(counts.findings())
    assert alarms <= 2


def test_the_border_lies_between_a_guess_and_what_is_of_use():
    assert [ClassCounts(classes).hardly for classes in (2, 10, 100, 1000)] == pytest.approx([0.55, 0.19, 0.03, 0.03])


@pytest.mark.parametrize("classes", [2, 10, 100])
def test_guesses_are_warned_of_once_there_are_enough(classes):
    generator = torch.Generator().manual_seed(0)
    counts = ClassCounts(classes)
    for _ in range(32):
        logits = torch.rand(64, classes, generator=generator)
        counts.add(logits, torch.randint(0, classes, (64,), generator=generator))
    assert [finding.name for finding in counts.findings()] == ["teacher near chance"]
