"""A temperature for each sample, from what the teacher says of it."""

import math
from typing import Literal, final

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_kd.configurable import Configurable
from lightning_kd.losses.logits.base import IGNORE_INDEX, class_ids
from lightning_kd.losses.tensors import upcast

Rule = Literal["confidence", "entropy", "correctness"]


@final
class AdaptiveTemperature(Configurable):
    r"""Soften each sample by a temperature of its own, which the teacher's probabilities decide.

    With the teacher's probabilities :math:`p = \mathrm{softmax}(z)` at temperature 1 over :math:`C` classes, the
    temperature is :math:`T = \mathrm{low} + (\mathrm{high} - \mathrm{low})\, r` where

    - ``confidence``: :math:`r = (C \max_c p_c - 1) / (C - 1)`, 0 for an undecided teacher and 1 for a certain one;
    - ``entropy``: :math:`r = 1 + \sum_c p_c \log p_c / \log C`, likewise, but from all the classes;
    - ``correctness``: :math:`r = 0` where the teacher's first class is the target, 1 where it is not, so that a wrong
      answer is taken over as a vague one; 1/2 for a sample without a label (class id -100).

    Each sample's divergence is multiplied by the square of its own temperature. No gradient reaches the teacher.

    Args:
        by: Which property of the teacher's probabilities decides.
        low: Lowest temperature, > 0.
        high: Highest temperature, >= ``low``.

    Raises:
        ValueError: If ``by`` is unknown, or not 0 < ``low`` <= ``high``.

    Example:
        >>> logits = torch.tensor([[0.0, 0.0], [math.log(3.0), 0.0], [100.0, 0.0]])  # p = 1/2, 3/4 and 1
        >>> AdaptiveTemperature(low=2.0, high=6.0)(logits)
        tensor([2.0000, 4.0000, 6.0000])
        >>> AdaptiveTemperature("correctness", low=1.0, high=3.0)(logits, torch.tensor([0, 1, -100]))
        tensor([1., 3., 2.])
    """

    def __init__(self, by: Rule = "confidence", low: float = 2.0, high: float = 6.0) -> None:
        if by not in ("confidence", "entropy", "correctness"):
            raise ValueError(f"AdaptiveTemperature: expected by 'confidence', 'entropy' or 'correctness', got {by!r}.")
        if not 0.0 < low <= high < float("inf"):
            raise ValueError(f"AdaptiveTemperature: expected 0 < low <= high, got low {low} and high {high}.")
        self.by: Rule = by
        self.low = low
        self.high = high

    @property
    def needs_target(self) -> bool:
        """Whether the target must be given."""
        return self.by == "correctness"

    def __call__(self, teacher_logits: Tensor, target: Tensor | None = None) -> Tensor:
        """Return one temperature for each sample, and position if there are positions.

        Args:
            teacher_logits: Unnormalised class scores of the teacher, classes on axis 1.
            target: Class ids, only read by ``correctness``.

        Raises:
            ValueError: If ``correctness`` gets no target, or one that does not suit the logits.
        """
        logits = upcast(teacher_logits.detach())
        if logits.shape[1] == 1:
            logits = yes_and_no(logits)
        if self.by == "correctness":
            share = _wrongness(logits, target)
        else:
            share = _certainty(logits) if self.by == "confidence" else _order(logits)
        return self.low + (self.high - self.low) * share

    def __repr__(self) -> str:
        return f"AdaptiveTemperature({', '.join(f'{name}={value!r}' for name, value in self.options().items())})"


def yes_and_no(logits: Tensor) -> Tensor:
    """Return the two logits of a yes and a no whose log odds are given on axis 1."""
    return torch.cat((logits, torch.zeros_like(logits)), dim=1)


def _certainty(logits: Tensor) -> Tensor:
    classes = logits.shape[1]
    return (classes * logits.softmax(dim=1).amax(dim=1) - 1) / (classes - 1)


def _order(logits: Tensor) -> Tensor:
    logarithm = F.log_softmax(logits, dim=1)
    return 1 + (logarithm.exp() * logarithm).sum(dim=1) / math.log(logits.shape[1])


def _wrongness(logits: Tensor, target: Tensor | None) -> Tensor:
    if target is None:
        raise ValueError("AdaptiveTemperature: by='correctness' needs the target; give it, or use by='confidence'.")
    ids, labelled = class_ids("AdaptiveTemperature", logits, target, IGNORE_INDEX)
    wrong = (logits.argmax(dim=1, keepdim=True) != ids).to(logits.dtype)
    return torch.where(labelled, wrong, 0.5).squeeze(1)
