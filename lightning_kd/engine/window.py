"""The mean over the tokens of an accumulation window, in the place of the mean of its micro-batches' means."""

from collections.abc import Sequence

import torch
from lightning.pytorch import LightningModule
from lightning_utilities.core.rank_zero import rank_zero_info
from torch import Tensor

from lightning_kd.engine.objective import Goal
from lightning_kd.losses.hybrid import HybridLoss
from lightning_kd.losses.tokens.mean import TokenMean


class TokenWindow:
    """Weighs the micro-batches of an accumulation window by their tokens, where all that trains are means over tokens.

    Lightning divides each loss by the number of micro-batches, so short texts would weigh as much as long ones. How
    many tokens a window has is known at its end only. So each micro-batch is weighed by its tokens against those of the
    first, and the gradient is divided by all of them before the optimizer's step.
    """

    def __init__(self) -> None:
        self.first: Tensor | None = None
        self.tokens: Tensor | None = None
        self._told = False
        self._goal: Goal | None = None
        self._has_tokens = False

    def begin(self) -> None:
        """Forget a window that an earlier fit has broken off."""
        self.first = self.tokens = None

    def weigh(self, total: Tensor, goal: Goal, module: LightningModule, of_task: Sequence[Tensor | None]) -> Tensor:
        """Return the loss of a micro-batch, as it is to be differentiated.

        Args:
            total: The loss of the micro-batch.
            goal: What trains.
            module: The module that trains.
            of_task: Over how many labels the task's own loss is a mean, ``None`` if it is no such mean; empty if there
                is no such loss.
        """
        if goal is not self._goal:
            self._goal, self._has_tokens = goal, any(isinstance(loss, TokenMean) for _, loss in goal.active)
        if not self._has_tokens or _micro_batches(module) == 1:
            return total
        count = _common_count(goal, of_task)
        if count is None:
            self._tell()
            return total
        if self.first is None or self.tokens is None:
            self.first, self.tokens = count.clamp_min(1.0), count
            return total
        self.tokens = self.tokens + count
        return total * (count / self.first)

    def finish(self, module: LightningModule) -> None:
        """Divide the gradient by the tokens of the window; called before the optimizer's step."""
        if self.first is None or self.tokens is None:
            return
        factor = float(self.first * _micro_batches(module) / self.tokens.clamp_min(1.0))
        self.first = self.tokens = None
        if factor != 1.0:
            for parameter in module.parameters():
                if parameter.grad is not None:
                    parameter.grad.mul_(factor)

    def _tell(self) -> None:
        if not self._told:
            self._told = True
            rank_zero_info(
                "The loss of an accumulation window is the mean of its micro-batches' means, since some of its parts "
                "are no means over the same tokens. TokenKDLoss(cross_entropy=...) in the place of the task's own loss "
                "makes it the mean over all tokens of the window."
            )


def _micro_batches(module: LightningModule) -> int:
    try:
        return int(module.trainer.accumulate_grad_batches)
    except (RuntimeError, AttributeError):
        return 1  # a loop of the user's own has no Trainer, and Fabric's stand-in has no such option


def _common_count(goal: Goal, of_task: Sequence[Tensor | None]) -> Tensor | None:
    """Return how many tokens all parts are means over, ``None`` if they are not."""
    if any(isinstance(loss, HybridLoss) and loss.balance != "none" for loss in goal.components.values()):
        return None
    counts = [*of_task, *(loss.counted for _, loss in goal.active)]
    first, *others = (None if count is None else count.to(torch.float32) for count in counts)
    if first is None or any(other is None or not torch.equal(first, other) for other in others):
        return None
    return first
