"""Means over the tokens of an evaluation: sums over counts, however its rows are split and padded."""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_kd.metrics.counts import Sums, WeightedMean

_ELEMENTS = 2**24
"""How many scores are made wider at once."""


class Perplexity(WeightedMean):
    """Exponential of the mean negative log-likelihood over all tokens of an evaluation.

    Of a model of bytes, its logarithm to the base of 2 is the number of bits per byte; of other tokens see
    :class:`BitsPerByte`.
    """

    def compute(self) -> Tensor:
        """Return the perplexity over everything counted so far."""
        return super().compute().exp()


class BitsPerByte(Sums):
    r"""Negative log-likelihood of a text in bits, for each of its bytes.

    .. math::
        \frac{1}{\text{bytes} \cdot \ln 2} \sum_i -\log p(\text{token}_i)

    Unlike the perplexity of a token, it compares models of different tokenizers.

    Args:
        ignore_index: Id of a position that does not count.

    Shape:
        - scores: unnormalised scores :math:`(..., V)` of the tokens in ``target``. Those of a causal model are shifted
          before: ``scores[:, :-1]`` and ``target[:, 1:]``.
        - target: token ids :math:`(...)`.

    Example:
        >>> metric = BitsPerByte()
        >>> metric.update(torch.zeros(1, 3, 4), torch.tensor([[0, 3, -100]]), num_bytes=8)  # 2 tokens of 2 bits
        >>> metric.compute()
        tensor(0.5000, dtype=torch.float64)
    """

    higher_is_better = False
    nats: Tensor
    bytes: Tensor

    def __init__(self, ignore_index: int = -100, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.ignore_index = ignore_index
        self.add_state("nats", torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("bytes", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, scores: Tensor, target: Tensor, num_bytes: int) -> None:
        """Count one batch.

        Args:
            scores: The scores of the tokens.
            target: The tokens.
            num_bytes: How many bytes of text the tokens that count stand for.

        Raises:
            ValueError: If the shapes do not fit.
        """
        if scores.shape[:-1] != target.shape:
            raise ValueError(
                f"BitsPerByte: scores {tuple(scores.shape)} and target {tuple(target.shape)} are not of "
                "the same tokens."
            )
        counted = target != self.ignore_index
        rows = scores.detach()[counted]
        self.nats += mean_negative_log_likelihood(rows, target[counted]).to(self.nats.dtype) * len(rows)
        self.bytes += num_bytes

    def compute(self) -> Tensor:
        """Return the bits per byte over everything counted so far, NaN without any."""
        return self.nats / (math.log(2) * self.bytes)


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
