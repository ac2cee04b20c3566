"""What a number of hits among some rows says of the rate behind it, exactly, so that few rows say little."""

import math

DOUBT = 1e-3
"""How seldom a bound may be wrong."""


def at_most(hits: int, rows: int, rate: float) -> float:
    """Return the probability of so many hits or fewer, where each row is a hit with a certain rate.

    Args:
        hits: Number of hits.
        rows: Number of rows, which are independent.
        rate: Probability of a hit, 0..1.

    Example:
        >>> round(at_most(0, 2, 0.5), 6), round(at_most(1, 2, 0.5), 6)
        (0.25, 0.75)
    """
    if hits >= rows or rate <= 0.0:
        return 1.0
    if rate >= 1.0:
        return 0.0
    whole = math.lgamma(rows + 1)
    return math.fsum(
        math.exp(
            whole - math.lgamma(k + 1) - math.lgamma(rows - k + 1) + k * math.log(rate) + (rows - k) * math.log1p(-rate)
        )
        for k in range(hits + 1)
    )


def surely_below(hits: int, rows: int, rate: float) -> bool:
    """Whether so few hits would be seen in one of a thousand runs at most, if the rate were as given or higher."""
    return rows > 0 and at_most(hits, rows, rate) < DOUBT


def surely_above(hits: int, rows: int, rate: float) -> bool:
    """Whether so many hits would be seen in one of a thousand runs at most, if the rate were as given or lower.

    Example:
        >>> surely_above(10, 10, 0.5), surely_above(9, 10, 0.5)
        (True, False)
    """
    return rows > 0 and at_most(rows - hits, rows, 1.0 - rate) < DOUBT
