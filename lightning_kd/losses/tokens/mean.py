"""The mean over tokens of all processes, for losses that are means over tokens."""

from abc import ABC

import torch
from torch import Tensor

from lightning_kd.distributed.gather import is_distributed, mean_over_processes
from lightning_kd.losses.base import DistillationLoss


class TokenMean(DistillationLoss, ABC):
    """A loss that is a mean over the tokens of a batch, wherever these tokens are.

    Processes hold different numbers of tokens, and so do the micro-batches of an accumulation window. A mean of their
    means would weigh the tokens of a short text more than those of a long one.
    """

    @property
    def reads_text(self) -> bool:
        """Whether a mask may say which tokens are padding: always."""
        return True

    def divide_by(self, count: Tensor) -> Tensor:
        """Return the number to divide this process's sum by; every process must call this in a step that trains.

        DDP averages the gradients over the processes, so the mean number of tokens of a process is the right one.

        Args:
            count: How many tokens count in this process.
        """
        count = count.to(torch.float32)
        if is_distributed() and torch.is_grad_enabled():
            count = mean_over_processes(count)
        self.counted = count
        return torch.where(count > 0, count, 1.0)
