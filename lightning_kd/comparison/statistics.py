"""Which arm is better than the student alone, and how sure that is: Student's t over paired seeds, and Holm."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any, Literal

Verdict = Literal["BEATS", "DOES NOT BEAT", "CANNOT TELL"]
LEVEL = 0.95
"""Of the intervals; the verdicts are wrong in at most one of twenty comparisons."""
_MOST_SEEDS = 1000


@dataclass(frozen=True)
class Interval:
    """A mean over seeds with its interval at 95 %.

    Args:
        mean: The mean.
        low: Lower end, ``-inf`` with one seed.
        high: Upper end, ``inf`` with one seed.
    """

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """An arm against the student alone, over the seeds that both have.

    Args:
        interval: The mean of the differences, with its interval at 95 % for this arm by itself.
        pairs: Number of seeds.
        p_value: Probability of a difference as large where there is none, 0..1; before Holm's correction.
        adjusted: The same after Holm's correction for all arms.
        verdict: What the adjusted value says at 5 %.
    """

    interval: Interval
    pairs: int
    p_value: float
    adjusted: float
    verdict: Verdict


def interval(values: Sequence[float]) -> Interval:
    r"""Return a mean with the interval of Student's t.

    .. math::
        \bar x \pm t_{0.975, n - 1} \, s / \sqrt{n}

    Args:
        values: One number for each seed, at least one.

    Example:
        >>> found = interval([1.0, 2.0, 3.0])  # 2 +- 4.303 * 1 / sqrt(3)
        >>> round(found.mean, 3), round(found.low, 3), round(found.high, 3)
        (2.0, -0.484, 4.484)
    """
    centre = mean(values)
    if len(values) < 2:
        return Interval(centre, -math.inf, math.inf)
    half = float(_t().ppf((1 + LEVEL) / 2, len(values) - 1)) * stdev(values) / math.sqrt(len(values))
    return Interval(centre, centre - half, centre + half)


def p_value(differences: Sequence[float]) -> float:
    """Return the two-sided probability of a mean as far from 0 where there is no difference, by Student's t.

    Differences without any spread say nothing: the scores are counted in steps, or the seed changes nothing. So do
    those of one seed. Both give 1.

    Example:
        >>> round(p_value([1.0, 2.0, 3.0]), 4)  # t = 2 / (1 / sqrt(3)) = 3.4641 with 2 degrees of freedom
        0.0742
        >>> p_value([0.5, 0.5, 0.5])
        1.0
    """
    if not has_spread(differences):
        return 1.0
    t = mean(differences) / (stdev(differences) / math.sqrt(len(differences)))
    return float(2 * _t().sf(abs(t), len(differences) - 1))


def has_spread(differences: Sequence[float]) -> bool:
    """Whether differences differ by more than rounding."""
    largest = max(map(abs, differences), default=0.0)
    return len(differences) > 1 and stdev(differences) > 1e-9 * largest


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values after Holm's correction for as many comparisons, in the same order.

    The smallest of k is multiplied by k, the next by k - 1, and so on; none falls below the one before it.

    Example:
        >>> [round(value, 2) for value in holm([0.01, 0.04, 0.03])]  # 3 * 0.01, max(0.06, 1 * 0.04), 2 * 0.03
        [0.03, 0.06, 0.06]

    Reference:
        Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 6, 1979.
    """
    order = sorted(range(len(p_values)), key=lambda number: p_values[number])
    adjusted = [1.0] * len(p_values)
    before = 0.0
    for rank, number in enumerate(order):
        before = max(before, min(1.0, (len(p_values) - rank) * p_values[number]))
        adjusted[number] = before
    return adjusted


def differences_to(
    baseline: Mapping[int, float], arms: Mapping[str, Mapping[int, float]], *, higher_is_better: bool = True
) -> dict[str, Difference]:
    """Compare arms with the student alone, seed by seed, and correct the verdicts for all of them.

    Args:
        baseline: Scores of the student alone by seed.
        arms: Scores by seed of each arm; one without a seed that the student alone has is left out.
        higher_is_better: Whether a larger score is better.

    Example:
        >>> alone = {1: 90.0, 2: 91.0, 3: 92.0, 4: 90.0}
        >>> found = differences_to(alone, {"kd": {1: 92.0, 2: 93.1, 3: 94.0, 4: 91.9}, "at": {1: 90.0, 2: 92.0}})
        >>> {name: (round(one.interval.mean, 2), one.pairs, one.verdict) for name, one in found.items()}
        {'kd': (2.0, 4, 'BEATS'), 'at': (0.5, 2, 'CANNOT TELL')}
    """
    paired = {
        name: [score - baseline[seed] for seed, score in scores.items() if seed in baseline]
        for name, scores in arms.items()
    }
    paired = {name: values for name, values in paired.items() if values}
    raw = [p_value(values) for values in paired.values()]
    found = {}
    for (name, values), p, adjusted in zip(paired.items(), raw, holm(raw), strict=True):
        is_better = (mean(values) > 0) == higher_is_better
        verdict: Verdict = "CANNOT TELL"
        if adjusted <= 1 - LEVEL:
            verdict = "BEATS" if is_better else "DOES NOT BEAT"
        found[name] = Difference(interval(values), len(values), p, adjusted, verdict)
    return found


def seeds_wanted(differences: Sequence[float], comparisons: int) -> int | None:
    """Return about how many seeds would settle a difference, if mean and spread stay as they are.

    Args:
        differences: Those of the seeds so far.
        comparisons: Number of arms, as in Holm's first step.

    Returns:
        ``None`` if nothing can be said, or more than 1,000 would be needed.

    Example:
        >>> seeds_wanted([1.0, 2.0, 3.0], comparisons=1)  # t = 2 sqrt(4) = 4 > 3.18, but 2 sqrt(3) = 3.46 < 4.30
        4
    """
    if not has_spread(differences):
        return None
    size = abs(mean(differences)) / stdev(differences)
    for count in range(2, _MOST_SEEDS + 1):
        if size * math.sqrt(count) > float(_t().ppf(1 - (1 - LEVEL) / 2 / comparisons, count - 1)):
            return count
    return None


def _t() -> Any:
    """Return Student's t distribution."""
    try:
        from scipy.stats import t
    except ImportError as error:
        raise ImportError(
            'A comparison computes its intervals with scipy: pip install "lightning_kd[compare]"'
        ) from error
    return t
