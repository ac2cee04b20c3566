"""Means over tokens, all at once or sentence by sentence."""

from typing import Literal, get_args

import torch
from torch import Tensor

Reduction = Literal["tokens", "sentences"]


def check_reduction(function: str, reduction: str) -> None:
    """Raise a ``ValueError`` unless the reduction exists."""
    if reduction not in get_args(Reduction):
        raise ValueError(f"{function}: expected reduction to be one of {list(get_args(Reduction))}, got {reduction!r}.")


def divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Return the divergence of each row of the second from the first; it is never negative, as rounding may be."""
    rows = (log_p.exp() * (log_p - log_q)).sum(-1)
    return rows - rows.detach().clamp_max(0.0)


def mean_of_sentences(values: Tensor, mask: Tensor | None, reduction: Reduction) -> Tensor:
    """Average values of tokens (B, T), or of pairs of tokens (B, T, T), over those that are no padding.

    Args:
        values: The values.
        mask: Which tokens (B, T) are no padding, ``None`` if all are none.
        reduction: Whether all tokens count alike, or all sentences that have a token.
    """
    if mask is None:
        return values.sum() / max(values.numel(), 1)
    real = mask.bool()
    if values.ndim == 3:
        real = real.unsqueeze(1) & real.unsqueeze(2)
    values = torch.where(real, values, 0.0)
    if reduction == "tokens":
        return values.sum() / real.sum().clamp_min(1)
    tokens = real.flatten(1).sum(1)
    return (values.flatten(1).sum(1) / tokens.clamp_min(1)).sum() / (tokens > 0).sum().clamp_min(1)
