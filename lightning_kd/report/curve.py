"""Loss parts and their weights over the steps of a run, in a bounded number of points."""

from collections.abc import Mapping
from typing import Any


class Curve:
    """Collects values by name over the steps; each point is the mean over as many steps as keep the number small.

    Once there are twice as many points as asked for, neighbours are joined. So a run of any length has points over the
    whole of it, equally far apart.

    Args:
        most: How many points are kept at most, > 1.

    Example:
        >>> curve = Curve(most=2)
        >>> for step in range(5):
        ...     curve.add(step, {"loss": float(step)}, {})
        >>> curve.state()["steps"], curve.state()["values"]
        ([1, 3, 4], {'loss': [0.5, 2.5, 4.0]})
    """

    def __init__(self, most: int = 2000) -> None:
        self.most = most
        self._stride = 1
        self._points: list[_Point] = []

    def add(self, step: int, values: Mapping[str, float], weights: Mapping[str, float]) -> None:
        """Add the values of one step.

        Args:
            step: Number of the step.
            values: Values by name; not every step needs the same names.
            weights: The weights of the parts among them.
        """
        if not self._points or self._points[-1].count >= self._stride:
            if len(self._points) >= 2 * self.most:
                self._join()
            self._points.append(_Point())
        self._points[-1].add(step, values, weights)

    def _join(self) -> None:
        pairs = zip(self._points[::2], self._points[1::2], strict=True)
        self._points = [first.joined(second) for first, second in pairs]
        self._stride *= 2

    def state(self) -> dict[str, Any]:
        """Return the points as plain data: the last step of each, and columns of values and of weights."""
        names = {name: None for point in self._points for name in point.sums}
        weighted = {name: None for point in self._points for name in point.weights}
        return {
            "steps": [point.step for point in self._points],
            "counts": [point.count for point in self._points],
            "stride": self._stride,
            "values": {name: [point.mean(name) for point in self._points] for name in names},
            "weights": {name: [point.weights.get(name) for point in self._points] for name in weighted},
        }

    def restore(self, state: Mapping[str, Any], before: int) -> None:
        """Go on from a state, with its points before a step."""
        self._stride = int(state["stride"])
        self._points = []
        for at, step in enumerate(state["steps"]):
            if step < before:
                count = int(state["counts"][at])
                values = {name: column[at] for name, column in state["values"].items() if column[at] is not None}
                weights = {name: column[at] for name, column in state["weights"].items() if column[at] is not None}
                point = _Point(step, count, {name: (value * count, count) for name, value in values.items()}, weights)
                self._points.append(point)


class _Point:
    """Sums over several steps."""

    def __init__(
        self,
        step: int = 0,
        count: int = 0,
        sums: dict[str, tuple[float, int]] | None = None,
        weights: dict[str, float] | None = None,
    ) -> None:
        self.step = step
        self.count = count
        self.sums = sums or {}
        self.weights = weights or {}

    def add(self, step: int, values: Mapping[str, float], weights: Mapping[str, float]) -> None:
        self.step = step
        self.count += 1
        for name, value in values.items():
            total, count = self.sums.get(name, (0.0, 0))
            self.sums[name] = (total + value, count + 1)
        self.weights.update(weights)

    def joined(self, later: "_Point") -> "_Point":
        sums = dict(self.sums)
        for name, (total, count) in later.sums.items():
            before, number = sums.get(name, (0.0, 0))
            sums[name] = (before + total, number + count)
        return _Point(later.step, self.count + later.count, sums, {**self.weights, **later.weights})

    def mean(self, name: str) -> float | None:
        total, count = self.sums.get(name, (0.0, 0))
        return total / count if count else None
