"""Means over the tokens of an evaluation: sums over counts, however its rows are split and padded."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric

_ELEMENTS = 2**24
"""How many scores are made wider at once."""


class TokenAverage(Metric):
    """Mean over all tokens of an evaluation, of means over the tokens of its batches; NaN without a token.

    Example:
        >>> average = TokenAverage()
        >>> average.update(torch.tensor(1.0), torch.tensor(3))
        >>> average.update(torch.tensor(5.0), torch.tensor(1))
        >>> average.compute()
        tensor(2., dtype=torch.float64)
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("total", torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, mean: Tensor, count: Tensor) -> None:
        """Count one batch.

        Args:
            mean: Mean over the tokens of the batch.
            count: How many tokens these are.
        """
        count = count.to(self.count)
        self.total += torch.where(count > 0, mean.detach().to(self.total) * count, 0.0)
        self.count += count

    def compute(self) -> Tensor:
        """Return the mean over everything counted so far."""
        return self.total / self.count

    def to(self, *args: Any, **kwargs: Any) -> "TokenAverage":
        """Move the sums to a device; to one of 32 bits in such."""
        if torch.device(args[0] if args else kwargs.get("device", "cpu")).type == "mps":
            self.set_dtype(torch.float32)
        return super().to(*args, **kwargs)


class Perplexity(TokenAverage):
    """Exponential of the mean negative log-likelihood over all tokens of an evaluation.

    Of a model of bytes, its logarithm to the base of 2 is the number of bits per byte.
    """

    def compute(self) -> Tensor:
        """Return the perplexity over everything counted so far."""
        return super().compute().exp()


def mean_negative_log_likelihood(rows: Tensor, ids: Tensor) -> Tensor:
    """Return the mean of ``-log softmax(rows)[ids]``, 0 without rows, in few scores at once.

    Args:
        rows: Unnormalised scores (M, V) of any format.
        ids: Token ids (M,).

    Example:
        >>> mean_negative_log_likelihood(torch.zeros(3, 2), torch.tensor([0, 1, 1]))
        tensor(0.6931, dtype=torch.float64)
    """
    wide = torch.float64 if rows.device.type != "mps" else torch.float32
    total = torch.zeros((), dtype=wide, device=rows.device)
    size = max(1, _ELEMENTS // max(1, rows.shape[1]))
    pieces: Sequence[tuple[Tensor, Tensor]] = list(zip(rows.split(size), ids.split(size), strict=True))
    for scores, one in pieces:
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
        total += F.cross_entropy(scores, one, reduction="none").sum(dtype=wide)
    return total / max(1, len(rows))
