"""Means of the loss and its parts between two log lines, at almost no cost a step."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

_WAIT = 64
"""Steps that are kept before they are added up."""
SPARED = " On the CPU the weights have not been updated with it."
"""A sentence of the error, for who knows better."""


class PartLog:
    """Adds up the total loss and each part, hands out means, and stops a run whose loss is no longer finite.

    Logging five values a step through the Trainer costs several times a small training step; here a step
    only keeps its values, and they are added up once in a while. On the CPU a loss that is not finite is reported
    in the step where it occurs; on an accelerator, where looking at a value would stall the queue, when the values
    are next added up, with the number of the first such step.

    Example:
        >>> log = PartLog()
        >>> log.add(torch.tensor(3.0), {"task": torch.tensor(1.0), "kd": torch.tensor(2.0)}, step=0)
        >>> log.add(torch.tensor(5.0), {"task": torch.tensor(1.0), "kd": torch.tensor(4.0)}, step=1)
        >>> log.flush()
        {'loss': 4.0, 'task': 1.0, 'kd': 3.0}
        >>> log.epoch_means
        {'loss': 4.0, 'task': 1.0, 'kd': 3.0}

        The mean of an epoch is over its rows, or over what a part counts; a line is the mean of its steps.

        >>> log.start_epoch()
        >>> log.add(torch.tensor(4.0), {}, step=2, rows=3)
        >>> log.add(torch.tensor(8.0), {}, step=3, rows=1)
        >>> log.flush(), log.epoch_means
        ({'loss': 6.0}, {'loss': 5.0})
    """

    def __init__(self) -> None:
        self._names: tuple[str, ...] = ()
        self._rows: list[list[float]] = []
        self._waiting: list[Tensor] = []
        self._steps: list[int] = []
        self._weights: list[tuple[float | Tensor, ...]] = []
        self._factors: list[dict[str, float]] = []
        self._window = _Sum()
        self._epoch = _Sum()
        self._by_steps = False
        """Whether the steps of this epoch count alike: its first ones come from a log that knows no rows."""
        self.bad_step: int | None = None
        """Number of the first step whose loss was not finite, once that is known."""

    def add(
        self,
        total: Tensor,
        parts: Mapping[str, Tensor],
        step: int,
        rows: int = 1,
        counts: Mapping[str, Tensor] | None = None,
        factors: Mapping[str, float] | None = None,
    ) -> None:
        """Count one step.

        Args:
            total: The whole loss.
            parts: The unweighted parts by name; each is averaged over the rows of the steps that have it.
            step: Number of the step, for the error.
            rows: How many samples the step has.
            counts: How much a part counts that is no mean over the rows, such as labels, by name. If it is the only
                part, so much counts the loss.
            factors: The weights that the parts have in this step, where they change over time.

        Raises:
            FloatingPointError: If the loss is not finite; names the parts and the step.
        """
        names = ("loss", *parts)
        if counts and len(parts) == 1 and names[1] in counts:
            counts = {**counts, "loss": counts[names[1]]}
        if names != self._names:
            self._add_up()
            self._names = names
        self._steps.append(step)
        self._factors.append(dict(factors or {}))
        self._weights.append(tuple([counts.get(name, rows) for name in names]) if counts else (rows,) * len(names))
        if self._waits(total):
            with torch.no_grad():
                self._waiting.append(torch.stack([total, *parts.values()]))
        else:
            self._rows.append([total.item(), *[value.item() for value in parts.values()]])
        if len(self._steps) == _WAIT or not (self._waiting or math.isfinite(self._rows[-1][0])):
            self._add_up()

    def flush(self) -> dict[str, float]:
        """Return the means over the steps since the last call, empty if there was no step, and begin anew.

        Raises:
            FloatingPointError: If the loss of one of these steps was not finite.
        """
        self._add_up()
        means = self._window.means()
        self._window = _Sum()
        return means

    def start_epoch(self) -> None:
        """Begin the means of a new epoch."""
        self._epoch = _Sum()
        self._by_steps = False

    @property
    def epoch_means(self) -> dict[str, float]:
        """Means of the steps of this epoch, by name."""
        self._add_up()
        return self._epoch.means()

    @property
    def epoch_weights(self) -> list[float]:
        """How much each of the means of this epoch is over, in the same order."""
        self._add_up()
        return self._epoch.weights()

    @property
    def epoch_shares(self) -> dict[str, float]:
        """Means of the weighted parts of this epoch by name, of those that had a weight of their own in each step."""
        self._add_up()
        return self._epoch.weighted_means()

    @property
    def epoch_is_uneven(self) -> bool:
        """Whether a part of this epoch is a mean over something else than the loss, in each of the steps."""
        self._add_up()
        steps = set(self._epoch.steps.values())
        return self._epoch.uneven and len(steps) == 1

    def state(self) -> dict[str, Any]:
        """Return what :meth:`restore` needs to go on with the same sums, as plain data; nothing is added up by it.

        Raises:
            FloatingPointError: If the loss of a step was not finite: what it left of the weights is not worth keeping.
        """
        rows = self._table()
        self._check(rows, self._steps)
        return {
            "names": list(self._names),
            "rows": rows,
            "steps": list(self._steps),
            "by_steps": self._by_steps,
            "weights": [[float(weight) for weight in weights] for weights in self._weights],
            "factors": [dict(factors) for factors in self._factors],
            "sums": [
                [dict(one.values), dict(one.counts), dict(one.units), dict(one.weighted), dict(one.steps), one.uneven]
                for one in (self._window, self._epoch)
            ],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a :meth:`state`: the means will be those of a log that was never interrupted, to the last bit."""
        self._names, self._steps = tuple(state["names"]), list(state["steps"])
        self._rows, self._waiting = [list(row) for row in state["rows"]], []
        # a checkpoint of an earlier version knows no rows, so the steps of its epoch count alike to the end
        self._by_steps = state.get("by_steps", True)
        self._weights = [tuple(w) for w in state.get("weights", [[1.0] * len(self._names)] * len(self._steps))]
        self._factors = [dict(factors) for factors in state.get("factors", [{}] * len(self._steps))]
        self._window, self._epoch = (_Sum(*sums) for sums in state["sums"])

    def _waits(self, value: Tensor) -> bool:
        """Whether looking at a value now would stall the device."""
        return not value.is_cpu

    def _table(self) -> list[list[float]]:
        return [*self._rows, *(torch.stack(self._waiting).double().tolist() if self._waiting else ())]

    def _add_up(self) -> None:
        table = self._table()
        if not table:
            return
        steps, weights = self._steps, [[float(weight) for weight in one] for one in self._weights]
        factors = self._factors
        self._rows, self._waiting, self._steps, self._weights, self._factors = [], [], [], [], []
        self._check(table, steps)
        alike = [[1.0] * len(one) for one in weights]
        self._window.add(self._names, table, alike)
        self._epoch.add(self._names, table, alike if self._by_steps else weights, factors)

    def _check(self, table: list[list[float]], steps: list[int]) -> None:
        for step, row in zip(steps, table, strict=True):
            bad = {name: v for name, v in zip(self._names, row, strict=True) if not math.isfinite(v)}
            if bad:
                self.bad_step = step
                raise _not_finite(bad, step)


class _Sum:
    """Weighted sums and weights by name, in the order in which the names came.

    Weights are in units of the first one, so that steps of equal weight give to the last bit their plain mean.
    """

    def __init__(
        self,
        values: Mapping[str, float] | None = None,
        counts: Mapping[str, float] | None = None,
        units: Mapping[str, float] | None = None,
        weighted: Mapping[str, Sequence[float]] | None = None,
        steps: Mapping[str, int] | None = None,
        uneven: bool = False,
    ) -> None:
        self.values: dict[str, float] = dict(values or {})
        self.counts: dict[str, float] = dict(counts or {})
        self.units: dict[str, float] = dict(units or {})
        self.weighted: dict[str, list[float]] = {name: list(both) for name, both in (weighted or {}).items()}
        """Of each part the sum with the weights that it had, and how much that is over."""
        self.steps: dict[str, int] = dict(steps or {})
        """How many steps each is over."""
        self.uneven = uneven
        """Whether the parts of a step counted otherwise than the loss."""

    def add(
        self,
        names: tuple[str, ...],
        table: list[list[float]],
        weights: list[list[float]],
        factors: Sequence[Mapping[str, float]] = (),
    ) -> None:
        self.uneven = self.uneven or any(len(set(one)) > 1 for one in weights)
        columns = zip(zip(*table, strict=True), zip(*weights, strict=True), strict=True)
        for name, (column, weight) in zip(names, columns, strict=True):
            unit = self.units.get(name) or next((one for one in weight if one), 0.0)
            self.units[name] = unit
            shares = [one / unit for one in weight] if unit else [0.0] * len(weight)
            added = sum(value * share for value, share in zip(column, shares, strict=True))
            self.values[name] = self.values.get(name, 0.0) + added
            self.counts[name] = self.counts.get(name, 0) + sum(shares)
            self.steps[name] = self.steps.get(name, 0) + len(column)
            if factors and all(name in one for one in factors):
                both = self.weighted.setdefault(name, [0.0, 0.0])
                both[0] += sum(v * s * f[name] for v, s, f in zip(column, shares, factors, strict=True))
                both[1] += sum(shares)

    def means(self) -> dict[str, float]:
        return {name: value / (self.counts[name] or 1.0) for name, value in self.values.items()}

    def weighted_means(self) -> dict[str, float]:
        """Return the means of the weighted parts, of those whose weight is known in every step."""
        known = {name: both for name, both in self.weighted.items() if both[1] and both[1] == self.counts[name]}
        return {name: total / count for name, (total, count) in known.items()}

    def weights(self) -> list[float]:
        """Return the whole weight of each mean, in the order of the names."""
        return [count * self.units.get(name, 1.0) for name, count in self.counts.items()]


def _not_finite(bad: Mapping[str, float], step: int) -> FloatingPointError:
    parts = {name: value for name, value in bad.items() if name != "loss"} or dict(bad)
    named = ", ".join(f"{name!r} is {value}" for name, value in parts.items())
    return FloatingPointError(
        f"The loss is not finite at step {step}: {named}.{SPARED} "
        "Look at this batch for NaN or inf, lower the learning rate or the weight of that part, or use bf16-mixed "
        "in place of 16-mixed."
    )
