"""Means of the loss and its parts between two log lines, at almost no cost a step."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

_WAIT = 64
"""Steps that are kept before they are added up."""


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
    """

    def __init__(self) -> None:
        self._names: tuple[str, ...] = ()
        self._rows: list[list[float]] = []
        self._waiting: list[Tensor] = []
        self._steps: list[int] = []
        self._window = _Sum()
        self._epoch = _Sum()

    def add(self, total: Tensor, parts: Mapping[str, Tensor], step: int) -> None:
        """Count one step.

        Args:
            total: The whole loss.
            parts: The unweighted parts by name; each is averaged over the steps that have it.
            step: Number of the step, for the error.

        Raises:
            FloatingPointError: If the loss is not finite; names the parts and the step.
        """
        names = ("loss", *parts)
        if names != self._names:
            self._add_up()
            self._names = names
        self._steps.append(step)
        if self._waits(total):
            with torch.no_grad():
                self._waiting.append(torch.stack([total, *parts.values()]))
        else:
            self._rows.append([total.item(), *[value.item() for value in parts.values()]])
        if len(self._steps) == _WAIT or not (self._waiting or math.isfinite(self._rows[-1][0])):
            self._add_up()

    def flush(self) -> dict[str, float]:
        """Return the means since the last call, empty if there was no step, and begin anew.

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

    @property
    def epoch_means(self) -> dict[str, float]:
        """Means of the steps of this epoch, by name."""
        self._add_up()
        return self._epoch.means()

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
            "sums": [[dict(total.values), dict(total.counts)] for total in (self._window, self._epoch)],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a :meth:`state`: the means will be those of a log that was never interrupted, to the last bit."""
        self._names, self._steps = tuple(state["names"]), list(state["steps"])
        self._rows, self._waiting = [list(row) for row in state["rows"]], []
        self._window, self._epoch = (_Sum(values, counts) for values, counts in state["sums"])

    def _waits(self, value: Tensor) -> bool:
        """Whether looking at a value now would stall the device."""
        return not value.is_cpu

    def _table(self) -> list[list[float]]:
        return [*self._rows, *(torch.stack(self._waiting).double().tolist() if self._waiting else ())]

    def _add_up(self) -> None:
        table = self._table()
        if not table:
            return
        steps = self._steps
        self._rows, self._waiting, self._steps = [], [], []
        self._check(table, steps)
        for total in (self._window, self._epoch):
            total.add(self._names, table)

    def _check(self, table: list[list[float]], steps: list[int]) -> None:
        for step, row in zip(steps, table, strict=True):
            bad = {name: v for name, v in zip(self._names, row, strict=True) if not math.isfinite(v)}
            if bad:
                raise _not_finite(bad, step)


class _Sum:
    """Sums and counts by name, in the order in which the names came."""

    def __init__(self, values: Mapping[str, float] | None = None, counts: Mapping[str, int] | None = None) -> None:
        self.values: dict[str, float] = dict(values or {})
        self.counts: dict[str, int] = dict(counts or {})

    def add(self, names: tuple[str, ...], table: list[list[float]]) -> None:
        for name, column in zip(names, zip(*table, strict=True), strict=True):
            self.values[name] = self.values.get(name, 0.0) + sum(column)
            self.counts[name] = self.counts.get(name, 0) + len(column)

    def means(self) -> dict[str, float]:
        return {name: value / self.counts[name] for name, value in self.values.items()}


def _not_finite(bad: Mapping[str, float], step: int) -> FloatingPointError:
    parts = {name: value for name, value in bad.items() if name != "loss"} or dict(bad)
    named = ", ".join(f"{name!r} is {value}" for name, value in parts.items())
    return FloatingPointError(
        f"The loss is not finite at step {step}: {named}. On the CPU the weights have not been updated with it. "
        "Look at this batch for NaN or inf, lower the learning rate or the weight of that part, or use bf16-mixed "
        "in place of 16-mixed."
    )
