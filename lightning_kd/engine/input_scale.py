"""Whether a teacher sees inputs in the range that it was trained on, as its first batch normalisation tells.

A batch normalisation keeps the mean and the variance of each channel from training. On inputs of another scale, such as
images of 0..255 in the place of 0..1, its channels are far from them, and the teacher's answers mean little.
"""

import math
from dataclasses import dataclass, field

import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor, nn

from lightning_kd.capture.followed import Followed
from lightning_kd.capture.private import BatchNorm

_FEW = 32
"""How many values a channel must have to tell something."""
_FAR = 10.0
"""From how many standard deviations on a few samples are warned of: two dark pictures are no other scale."""


@dataclass(slots=True)
class Spread:
    """How far the channels of what a batch normalisation is given are from what it saw in training.

    Args:
        norm: The batch normalisation.

    Example:
        >>> norm = nn.BatchNorm1d(2)
        >>> norm.num_batches_tracked.fill_(1), norm.eval()
        (tensor(1), BatchNorm1d(2, ...))
        >>> spread = Spread(norm)
        >>> spread.add(torch.tensor([[8.0, -8.0], [-8.0, 8.0]]).repeat(16, 1))
        >>> round(spread.deviations(), 2), round(spread.width(), 2)
        (8.0, 8.0)
    """

    norm: nn.Module
    _sums: Tensor | None = field(default=None, init=False)
    _squares: Tensor | None = field(default=None, init=False)
    _count: int = field(default=0, init=False)

    @torch.no_grad()
    def add(self, given: Tensor) -> None:
        """Count what the normalisation was given, (B, C, ...)."""
        values = given.detach().double().movedim(1, 0).flatten(1)
        sums, squares = values.sum(1), values.square().sum(1)
        self._sums = sums if self._sums is None else self._sums + sums
        self._squares = squares if self._squares is None else self._squares + squares
        self._count += values.shape[1]

    def deviations(self) -> float:
        """Return the root mean square distance from the mean in training, in its standard deviations: about 1.

        Of the channels it is the median; NaN of too few values.
        """
        return self._median(about_own_mean=False)

    def width(self) -> float:
        """Return the standard deviation, in units of that in training: about 1; the median of the channels."""
        return self._median(about_own_mean=True)

    def _median(self, *, about_own_mean: bool) -> float:
        mean, variance = (getattr(self.norm, name) for name in ("running_mean", "running_var"))
        if self._sums is None or self._squares is None or self._count < _FEW:
            return math.nan
        about = self._sums / self._count if about_own_mean else mean.double()
        squares = self._squares / self._count - 2 * about * self._sums / self._count + about.square()
        return float((squares.clamp_min(0) / (variance.double() + self.norm.eps)).median().sqrt())


def is_trained(module: nn.Module) -> bool:
    """Whether a module is a batch normalisation that compares with what it has seen in training."""
    mean, count = (getattr(module, name, None) for name in ("running_mean", "num_batches_tracked"))
    if not isinstance(module, BatchNorm) or module.training or not isinstance(mean, Tensor) or mean.is_meta:
        return False
    return not isinstance(count, Tensor) or bool(count)


def tell_of_scale(teacher: Followed | None) -> None:
    """Warn of a teacher whose inputs on the first samples are of another scale than those that it was trained on.

    Args:
        teacher: The module calls of the teacher, ``None`` if they were not followed.
    """
    runs = [] if teacher is None else [run for run in teacher.runs if isinstance(run.module, BatchNorm)]
    if not runs or not is_trained(runs[0].module) or runs[0].given is None or runs[0].given.ndim < 2:
        return
    spread = Spread(runs[0].module)
    spread.add(runs[0].given)
    if spread.deviations() > _FAR:
        rank_zero_warn(f"{in_words(runs[0].name, spread.deviations())} {REMEDY}")


REMEDY = (
    "Look whether the teacher sees its inputs scaled as in its training (images of 0..1, normalised); "
    "teacher_inputs=Renormalize(...) gives it another normalisation than the student."
)


def in_words(layer: str, times: float) -> str:
    """Return what is wrong with the scale, in a sentence.

    Args:
        layer: Name of the batch normalisation.
        times: How large the values are, in standard deviations of the training.
    """
    return (
        f"The teacher's first batch normalisation {layer!r} is given values that are {times:.3g} times as far from "
        "their mean as in the teacher's training."
    )
