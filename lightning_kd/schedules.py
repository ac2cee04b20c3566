"""Weights and temperatures over time: pure functions of how far a run has come, so that resuming needs no state."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Literal, TypeAlias, final

from torch import Tensor

from lightning_kd.configurable import Configurable

Unit = Literal["epoch", "step"]


@dataclass(frozen=True, slots=True)
class Moment:
    """How far a run has come.

    Args:
        step: Optimizer steps done.
        epoch: Epochs completed.
    """

    step: int = 0
    epoch: int = 0

    def count(self, unit: Unit) -> int:
        """Return the steps done or the epochs completed."""
        return self.step if unit == "step" else self.epoch


class Schedule(Configurable, ABC):
    """A number that changes as a run goes on; give it wherever a loss takes a weight or a temperature.

    A subclass stores every constructor argument under its own name.
    """

    @abstractmethod
    def at(self, moment: Moment) -> float:
        """Return the value at a moment of the run."""

    @abstractmethod
    def extremes(self) -> tuple[float, ...]:
        """Return values between which the schedule stays, to check its range at set-up."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self.options().items())})"


Scalar: TypeAlias = float | Schedule
"""A number, or one that changes over the run."""


def value_at(scalar: Scalar, moment: Moment) -> float:
    """Return the number itself, or the schedule's value at a moment.

    Example:
        >>> value_at(2.0, Moment()), value_at(LinearSchedule(0.0, 1.0, length=4), Moment(epoch=1))
        (2.0, 0.25)
    """
    return scalar.at(moment) if isinstance(scalar, Schedule) else scalar


def extremes(scalar: Scalar) -> tuple[float, ...]:
    """Return the number itself, or the values between which the schedule stays."""
    return scalar.extremes() if isinstance(scalar, Schedule) else (scalar,)


@final
class ConstantSchedule(Schedule):
    """The same value throughout.

    Args:
        value: The value.
    """

    def __init__(self, value: float) -> None:
        self.value = value

    def at(self, moment: Moment) -> float:
        """Return the value."""
        return self.value

    def extremes(self) -> tuple[float, ...]:
        """Return the value."""
        return (self.value,)


class _Ramp(Schedule):
    """From one value to another over a number of epochs or steps, after a delay."""

    def __init__(self, start: float, end: float, length: int, unit: Unit = "epoch", delay: int = 0) -> None:
        name = type(self).__name__
        check_whole(name, "length", length, 1)
        check_whole(name, "delay", delay, 0)
        check_unit(name, unit)
        self.start, self.end, self.length = start, end, length
        self.unit: Unit = unit
        self.delay = delay

    def extremes(self) -> tuple[float, ...]:
        """Return both ends."""
        return (self.start, self.end)

    def at(self, moment: Moment) -> float:
        """Return the value after the epochs or steps that are done."""
        done = (moment.count(self.unit) - self.delay) / self.length
        if done >= 1.0:
            return self.end
        return self.start + (self.end - self.start) * self.share(max(done, 0.0))

    @abstractmethod
    def share(self, done: float) -> float:
        """Return the share of the change, 0..1, at a share of the length, 0..1."""


@final
class LinearSchedule(_Ramp):
    """From one value to another in a straight line, then constant.

    Args:
        start: Value at the beginning.
        end: Value after ``delay + length``.
        length: Number of epochs or steps that the change takes, >= 1.
        unit: Whether to count epochs or optimizer steps, those of all optimizers together, as Lightning does.
        delay: Number of epochs or steps before the change begins, >= 0.

    Raises:
        ValueError: If a number is out of its range.

    Example:
        >>> [LinearSchedule(1.0, 0.0, length=2, delay=1).at(Moment(epoch=epoch)) for epoch in range(5)]
        [1.0, 1.0, 0.5, 0.0, 0.0]
    """

    def share(self, done: float) -> float:
        """Return the share of the change."""
        return done


@final
class CosineSchedule(_Ramp):
    """From one value to another along half a cosine wave, then constant.

    Args:
        start: Value at the beginning.
        end: Value after ``delay + length``.
        length: Number of epochs or steps that the change takes, >= 1.
        unit: Whether to count epochs or optimizer steps, those of all optimizers together, as Lightning does.
        delay: Number of epochs or steps before the change begins, >= 0.

    Raises:
        ValueError: If a number is out of its range.

    Example:
        >>> [round(CosineSchedule(0.0, 1.0, length=3).at(Moment(epoch=epoch)), 2) for epoch in range(4)]
        [0.0, 0.25, 0.75, 1.0]
    """

    def share(self, done: float) -> float:
        """Return the share of the change."""
        return (1.0 - math.cos(math.pi * done)) / 2.0


@final
class StepSchedule(Schedule):
    """One value after another, switched at milestones.

    Args:
        values: The values, one more than milestones.
        milestones: Epochs or steps at which the next value begins, ascending.
        unit: Whether to count epochs or optimizer steps, those of all optimizers together, as Lightning does.

    Raises:
        ValueError: If the numbers of values and milestones do not match, or the milestones are not ascending whole
            numbers >= 1.

    Example:
        >>> [StepSchedule([4.0, 2.0, 1.0], [1, 3]).at(Moment(epoch=epoch)) for epoch in range(4)]
        [4.0, 2.0, 2.0, 1.0]
    """

    def __init__(self, values: Sequence[float], milestones: Sequence[int], unit: Unit = "epoch") -> None:
        check_unit("StepSchedule", unit)
        if len(values) != len(milestones) + 1:
            raise ValueError(
                f"StepSchedule: expected one value more than milestones, got {len(values)} values and "
                f"{len(milestones)} milestones."
            )
        for milestone in milestones:
            check_whole("StepSchedule", "milestone", milestone, 1)
        if list(milestones) != sorted(set(milestones)):
            raise ValueError(f"StepSchedule: expected ascending milestones, got {list(milestones)}.")
        self.values, self.milestones = list(values), list(milestones)
        self.unit: Unit = unit

    def at(self, moment: Moment) -> float:
        """Return the value of the last milestone that is reached."""
        return self.values[sum(milestone <= moment.count(self.unit) for milestone in self.milestones)]

    def extremes(self) -> tuple[float, ...]:
        """Return every value."""
        return tuple(self.values)


@final
class WarmUpSchedule(Schedule):
    r"""Grow to a value in equal steps, the first of which is not zero: :math:`v \min((t + 1) / n, 1)`.

    Args:
        value: Value once warm.
        length: Number of epochs or steps until then, >= 1. Published recipes of DKD and ReviewKD use 20 epochs.
        unit: Whether to count epochs or optimizer steps, those of all optimizers together, as Lightning does.

    Raises:
        ValueError: If ``length`` is not positive.

    Example:
        >>> [WarmUpSchedule(8.0, length=4).at(Moment(epoch=epoch)) for epoch in range(5)]
        [2.0, 4.0, 6.0, 8.0, 8.0]
    """

    def __init__(self, value: float, length: int, unit: Unit = "epoch") -> None:
        check_whole("WarmUpSchedule", "length", length, 1)
        check_unit("WarmUpSchedule", unit)
        self.value, self.length = value, length
        self.unit: Unit = unit

    def at(self, moment: Moment) -> float:
        """Return the value that belongs to the epoch or step that now begins."""
        return self.value * min((moment.count(self.unit) + 1) / self.length, 1.0)

    def extremes(self) -> tuple[float, ...]:
        """Return the first value and the last."""
        return (self.value / self.length, self.value)


def check_number(function: str, name: str, value: object) -> None:
    """Raise a ``TypeError`` that names an argument which is neither a number nor a schedule, such as a layer's name."""
    if isinstance(value, str) or not isinstance(value, Real | Tensor | Schedule):
        raise TypeError(f"{function}: expected {name} as a number or a schedule, got {value!r}.")


def check_constants(function: str, **values: object) -> None:
    """Raise a ``TypeError`` that names the first argument that is no number which holds for the whole run."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, Real | Tensor):
            raise TypeError(f"{function}: expected {name} as a number, got {value!r}.")


def check_whole(owner: str, name: str, value: object, least: int | None = None) -> None:
    """Raise a ``ValueError`` unless a value is a whole number, and large enough."""
    if not isinstance(value, int) or isinstance(value, bool) or (least is not None and value < least):
        enough = "" if least is None else f" >= {least}"
        raise ValueError(f"{owner}: expected a whole number {name}{enough}, got {value!r}.")


def check_unit(owner: str, unit: str) -> None:
    """Raise a ``ValueError`` unless the unit is one of the two."""
    if unit not in ("epoch", "step"):
        raise ValueError(f"{owner}: expected unit 'epoch' or 'step', got {unit!r}.")
