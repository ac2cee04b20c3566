"""Means of the loss and its parts between two log lines, at the cost of one addition a step."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor


class PartLog:
    """Adds up the total loss and each part, hands out means, and stops a run whose loss is no longer finite.

    Logging five values a step through the Trainer costs several times a small training step; here a step costs one
    addition, and the Trainer sees the means only when it writes a log line. On the CPU a loss that is not finite is
    reported in the step where it occurs; on an accelerator, where looking at a value would stall the queue, the
    first such step is remembered on the device and reported with the next log line.

    Args:
        prefix: What the names begin with.

    Example:
        >>> log = PartLog("train/")
        >>> log.add(torch.tensor(3.0), {"task": torch.tensor(1.0), "kd": torch.tensor(2.0)}, step=0)
        >>> log.add(torch.tensor(5.0), {"task": torch.tensor(1.0), "kd": torch.tensor(4.0)}, step=1)
        >>> log.flush()
        {'train/loss': 4.0, 'train/task': 1.0, 'train/kd': 3.0}
        >>> log.epoch_means
        {'loss': 4.0, 'task': 1.0, 'kd': 3.0}
    """

    def __init__(self, prefix: str = "train/") -> None:
        self.prefix = prefix
        self._names: tuple[str, ...] = ()
        self._window: Tensor | None = None
        self._first_bad: Tensor | None = None
        self._count = 0
        self._epoch: list[float] = []
        self._epoch_count = 0

    def add(self, total: Tensor, parts: Mapping[str, Tensor], step: int) -> None:
        """Count one step.

        Args:
            total: The whole loss.
            parts: The unweighted parts by name.
            step: Number of the step, for the error.

        Raises:
            FloatingPointError: If the loss is not finite; names the parts and the step.
        """
        names = ("loss", *parts)
        with torch.no_grad():
            values = torch.stack([value.float() for value in (total, *parts.values())])
            if self._window is None or names != self._names or self._window.device != values.device:
                self._names, self._count, self._window = names, 0, torch.zeros_like(values)
                self._first_bad = torch.full_like(values, math.inf)
            self._window += values
            waits = self._waits(values)
            if waits:
                assert self._first_bad is not None
                self._first_bad = torch.where(values.isfinite(), self._first_bad, self._first_bad.clamp(max=step))
        self._count += 1
        if not waits and not math.isfinite(float(values[0])):
            bad = {name: v for name, v in zip(names, values.tolist(), strict=True) if not math.isfinite(v)}
            raise _not_finite(bad, step)

    def flush(self) -> dict[str, float]:
        """Return the means since the last call, empty if there was no step, and begin anew.

        Raises:
            FloatingPointError: If the loss of one of these steps was not finite.
        """
        if not self._count or self._window is None:
            return {}
        sums = self._window.tolist()
        self._raise_if_bad(sums)
        means = {name: value / self._count for name, value in zip(self._names, sums, strict=True)}
        if len(self._epoch) != len(sums):
            self._epoch, self._epoch_count = [0.0] * len(sums), 0
        self._epoch = [have + value for have, value in zip(self._epoch, sums, strict=True)]
        self._epoch_count += self._count
        self._window.zero_()
        self._count = 0
        return {f"{self.prefix}{name}": value for name, value in means.items()}

    def start_epoch(self) -> None:
        """Begin the means of a new epoch."""
        self._epoch, self._epoch_count = [], 0

    @property
    def epoch_means(self) -> dict[str, float]:
        """Means of the steps of this epoch that have been flushed, by name without the prefix."""
        return {name: value / self._epoch_count for name, value in zip(self._names, self._epoch, strict=False)}

    def _waits(self, values: Tensor) -> bool:
        """Whether looking at a value now would stall the device."""
        return values.device.type != "cpu"

    def _raise_if_bad(self, sums: list[float]) -> None:
        assert self._first_bad is not None
        if all(math.isfinite(value) for value in sums):
            return
        steps = dict(zip(self._names, self._first_bad.tolist(), strict=True))
        first = min(steps.values())
        if math.isfinite(first):
            bad = {name: value for name, value in zip(self._names, sums, strict=True) if steps[name] == first}
            raise _not_finite(bad, int(first))


def _not_finite(bad: Mapping[str, float], step: int) -> FloatingPointError:
    parts = {name: value for name, value in bad.items() if name != "loss"} or dict(bad)
    named = ", ".join(f"{name!r} is {value}" for name, value in parts.items())
    return FloatingPointError(
        f"The loss is not finite at step {step}: {named}. The weights have not been updated with it on the CPU; "
        "look at this batch for NaN or inf, lower the learning rate or the weight of that part, or use bf16-mixed "
        "in place of 16-mixed."
    )
