"""Verdicts against scipy's own paired test, Holm by hand, and what happens where nothing helps."""

import random
from math import inf
from statistics import mean

import pytest
from scipy import stats

from lightning_kd.comparison.statistics import differences_to, holm, interval, p_value, seeds_wanted

ALONE = {1: 0.90, 2: 0.91, 3: 0.93, 4: 0.89, 5: 0.90}
KD = {1: 0.93, 2: 0.92, 3: 0.95, 4: 0.92, 5: 0.94}


def test_the_p_value_and_the_interval_are_those_of_scipys_paired_test():
    theirs = stats.ttest_rel(list(KD.values()), list(ALONE.values()))
    found = differences_to(ALONE, {"kd": KD})["kd"]
    assert found.p_value == pytest.approx(theirs.pvalue, rel=1e-9)
    low, high = theirs.confidence_interval(0.95)
    assert (found.interval.low, found.interval.high) == pytest.approx((low, high), rel=1e-9)
    assert found.pairs == 5


def test_seeds_are_paired_by_their_number_not_by_their_order():
    turned = dict(reversed(KD.items()))
    assert differences_to(ALONE, {"kd": turned}) == differences_to(ALONE, {"kd": KD})
    without = {seed: score for seed, score in KD.items() if seed != 3}
    assert differences_to(ALONE, {"kd": without})["kd"].interval.mean == pytest.approx(
        mean(KD[seed] - ALONE[seed] for seed in (1, 2, 4, 5))
    )


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_an_arm_that_beats_alone_need_not_beat_beside_others():
    alone = differences_to(ALONE, {"kd": KD})["kd"]
    others = {f"other {number}": ALONE | {1: 0.91 + number / 100} for number in range(12)}
    beside = differences_to(ALONE, {"kd": KD, **others})["kd"]
    assert (alone.verdict, beside.verdict) == ("BEATS", "CANNOT TELL")
    assert beside.adjusted == pytest.approx(13 * alone.p_value)
    assert beside.interval == alone.interval


def test_worse_does_not_beat_and_a_lower_score_may_be_better():
    assert differences_to(KD, {"alone": ALONE})["alone"].verdict == "DOES NOT BEAT"
    assert differences_to(KD, {"alone": ALONE}, higher_is_better=False)["alone"].verdict == "BEATS"


def test_one_seed_and_equal_differences_say_nothing():
    assert differences_to({1: 0.5}, {"kd": {1: 0.9}})["kd"].verdict == "CANNOT TELL"
    equal = {seed: score + 0.1 for seed, score in ALONE.items()}
    assert differences_to(ALONE, {"kd": equal})["kd"].verdict == "CANNOT TELL"
    assert differences_to(ALONE, {"kd": ALONE})["kd"].verdict == "CANNOT TELL"
    assert interval([0.5]).high == inf
    assert differences_to(ALONE, {"kd": {9: 1.0}}) == {}


def test_thirteen_arms_that_help_nothing_beat_in_at_most_one_of_twenty_comparisons():
    draw = random.Random(0)
    false, uncorrected, runs = 0, 0, 200
    for _ in range(runs):
        found = [p_value([draw.gauss(0, 0.01) for _ in range(3)]) for _ in range(13)]
        false += min(holm(found)) <= 0.05
        uncorrected += min(found) <= 0.05
    assert false / runs < 0.1  # 0.05, and three standard errors
    assert uncorrected / runs > 0.35  # which is what the correction is for


def test_the_seeds_that_would_settle_it():
    differences = [0.02, 0.00, 0.04]
    wanted = seeds_wanted(differences, comparisons=13)
    level = 0.05 / 13
    t = mean(differences) / (0.02 / wanted**0.5)
    assert 2 * stats.t.sf(t, wanted - 1) < level < 2 * stats.t.sf(t * ((wanted - 1) / wanted) ** 0.5, wanted - 2)
    assert seeds_wanted([0.1, 0.1], comparisons=1) is None
    assert p_value([0.0]) == 1.0
