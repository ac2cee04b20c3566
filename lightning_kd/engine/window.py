"""The mean over the tokens of an accumulation window, in the place of the mean of its micro-batches' means."""

from collections.abc import Iterable, Sequence

import torch
from lightning.pytorch import LightningModule
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor
from torch.autograd.graph import Node

from lightning_kd.engine.objective import Goal
from lightning_kd.losses.base import DistillationLoss
from lightning_kd.losses.hybrid import HybridLoss
from lightning_kd.losses.tokens.mean import TokenMean

_STEPS = 6
"""How many operations may lie between the loss that a step returns and what is differentiated."""


class TokenWindow:
    """Weighs the micro-batches of an accumulation window by their tokens, where all that trains are means over tokens.

    Lightning divides each loss by the number of micro-batches, so short texts would weigh as much as long ones. How
    many tokens a window has is known at its end only. So the gradient of each micro-batch is weighed by its tokens
    against those of the first, and the whole is divided by all of them before the optimizer's step. The value of the
    loss stays that of the micro-batch. A term that a subclass adds would be divided too, so nothing is weighed then.

    Args:
        losses: All losses of the run.
    """

    def __init__(self, losses: Iterable[DistillationLoss]) -> None:
        # also one whose weight is 0 for now, so that windows are alike before and after that changes
        self.has_tokens = any(isinstance(loss, TokenMean) for loss in losses)
        self.first: Tensor | None = None
        self.tokens: Tensor | None = None
        self._told = False
        self._returned: Node | None = None
        self._has_more = False

    def begin(self) -> None:
        """Forget a window that an earlier fit has broken off."""
        self.first = self.tokens = self._returned = None
        self._has_more = False

    def weigh(self, total: Tensor, goal: Goal, module: LightningModule, of_task: Sequence[Tensor | None]) -> Tensor:
        """Return the loss of a micro-batch, with a gradient that has the weight of its tokens.

        Args:
            total: The loss of the micro-batch.
            goal: What trains.
            module: The module that trains.
            of_task: Over how many labels the task's own loss is a mean, ``None`` if it is no such mean; empty if there
                is no such loss.
        """
        if not self.has_tokens or self._has_more or _micro_batches(module) == 1:
            return total
        count = _common_count(goal, of_task)
        if count is None:
            self._tell()
            return total
        if self.first is None or self.tokens is None:
            self.first, self.tokens = count.clamp_min(1.0), count
            return total
        self.tokens = self.tokens + count
        weighed = total * (count / self.first)
        return weighed + (total - weighed).detach()

    def returned(self, loss: Tensor) -> Tensor:
        """Note the loss that a step returns, and return it."""
        self._returned = None if self.first is None else loss.grad_fn
        return loss

    def check(self, loss: Tensor) -> None:
        """Weigh nothing from now on if more is differentiated than the loss that was returned.

        Args:
            loss: What is differentiated: that loss by the number of micro-batches, or by the scale of 16 bits.
        """
        node, wanted = loss.grad_fn, self._returned
        self._returned = None
        if wanted is None or self._has_more:
            return
        for _ in range(_STEPS):
            if node is wanted:
                return
            before = [] if node is None else [one for one, _ in node.next_functions if one is not None]
            node = before[0] if len(before) == 1 else None
        self.first = self.tokens = None
        self._has_more = True
        rank_zero_warn(
            "training_step adds a term to the loss of tokens, so the loss of an accumulation window is the mean of its "
            "micro-batches' means, and not the mean over all tokens of the window: the added term would be weighed by "
            "tokens too. Give the term as a loss of its own, losses=[..., YourLoss()], or as task_loss."
        )

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
