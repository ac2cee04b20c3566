"""Means over the tokens of an evaluation: sums over counts, however its rows are split and padded."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_kd.metrics.counts import WeightedMean

_ELEMENTS = 2**24
"""How many scores are made wider at once."""


class Perplexity(WeightedMean):
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
