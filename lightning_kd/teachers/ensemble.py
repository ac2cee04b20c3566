"""Several teachers as one."""

import math
from collections.abc import Sequence
from typing import Literal, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_kd.capture.batch import logits_of
from lightning_kd.capture.columns import takes
from lightning_kd.capture.outputs import kind_of_probabilities

Average = Literal["probabilities", "logits"]


@final
class Ensemble(nn.Module):
    """Answers with the mean of several models' answers; give it wherever a teacher is expected.

    The logits that it returns are the logarithm of the mean probabilities, so that their softmax at temperature 1 is
    that mean, or the mean of the logits. Of a single logit, (B, 1) or (B,), they are the log odds of the mean chance of
    a yes. The members' layers are named ``members.0.layer3`` and so on.

    Args:
        members: Models that take the same inputs and return logits of the same shape.
        average: What to average: the probabilities of classes that exclude one another, or the logits as they are, as
            of several labels.
        class_axis: The axis of the classes; by default 1, but the last of tokens (B, N, C).

    Raises:
        ValueError: If there are no members, or ``average`` is neither.

    Example:
        >>> sure, unsure = nn.Identity(), nn.Identity()
        >>> _ = sure.register_forward_hook(lambda *_: torch.tensor([[0.8, 0.2]]).log())
        >>> _ = unsure.register_forward_hook(lambda *_: torch.tensor([[0.4, 0.6]]).log())
        >>> Ensemble([sure, unsure])(torch.zeros(1, 2)).exp()
        tensor([[0.6000, 0.4000]])
    """

    def __init__(
        self, members: Sequence[nn.Module], average: Average = "probabilities", *, class_axis: int | None = None
    ) -> None:
        super().__init__()
        if not members:
            raise ValueError("Ensemble: expected at least one member, got none; pass a list of models.")
        if average not in ("probabilities", "logits"):
            raise ValueError(f"Ensemble: expected average 'probabilities' or 'logits', got {average!r}.")
        self.members = nn.ModuleList(members)
        self.average: Average = average
        self.class_axis = class_axis
        self._looked = False

    @property
    def called_alike(self) -> list[nn.Module]:
        """The networks that a call is handed on to, each with what it takes."""
        return list(self.members)

    def forward(self, *args: object, **kwargs: object) -> Tensor:
        """Call every member with these inputs and return the mean as logits, at least in float32.

        Raises:
            ValueError: If a member returns no logits, or their shapes differ; in the first call, if one returns
                probabilities in their place.
        """
        answers = [
            self._logits(i, member(*args, **({name: kwargs[name] for name in kwargs if name in takes(member)})))
            for i, member in enumerate(self.members)
        ]
        shapes = [tuple(answer.shape) for answer in answers]
        if len(set(shapes)) > 1:
            raise ValueError(
                f"Ensemble: expected logits of one shape from all members, got {shapes}; "
                "use models of the same classes and resolution."
            )
        if not self._looked and not torch.compiler.is_compiling():
            self._looked = True
            self._check_scores(answers)
        total = answers[0]
        if self.average == "logits":
            for answer in answers[1:]:
                total = total + answer
            return total / len(answers)
        axis = self._axis(total)
        if axis is None:
            yes, no = (self._mean([F.logsigmoid(sign * answer) for answer in answers]) for sign in (1.0, -1.0))
            return yes - no
        return self._mean([F.log_softmax(answer, dim=axis) for answer in answers])

    @staticmethod
    def _mean(logarithms: Sequence[Tensor]) -> Tensor:
        """Return the logarithm of the mean of what these are the logarithms of."""
        total = logarithms[0]
        for one in logarithms[1:]:
            total = torch.logaddexp(total, one)
        return total - math.log(len(logarithms))

    def _axis(self, answer: Tensor) -> int | None:
        """Return the axis of the classes, ``None`` of a single logit."""
        axis = self.class_axis
        if axis is None:
            axis = 2 if answer.ndim == 3 else 1
        elif not -answer.ndim <= axis < answer.ndim:
            raise ValueError(
                f"Ensemble: class_axis={axis} is no axis of logits of shape {tuple(answer.shape)}; give 1 for "
                "(B, C, ...), or leave it out."
            )
        return None if answer.ndim < 2 or answer.shape[axis] == 1 else axis

    def _check_scores(self, answers: Sequence[Tensor]) -> None:
        for index, answer in enumerate(answers):
            if kind_of_probabilities(answer) == "probabilities":
                raise ValueError(
                    f"Ensemble: expected logits, but member {index} ({type(self.members[index]).__name__}) returns "
                    "probabilities: each row adds up to 1. Give a member that ends before its softmax, or with "
                    "log_softmax."
                )

    def extra_repr(self) -> str:
        """Show what is averaged."""
        return f"average={self.average!r}"

    def _logits(self, index: int, output: object) -> Tensor:
        logits = logits_of(output)
        if logits is None:
            raise ValueError(
                f"Ensemble: member {index} ({type(self.members[index]).__name__}) returned a {type(output).__name__} "
                "without logits; wrap it in a module that returns a tensor."
            )
        return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
