"""Scores, probabilities, queries, keys and values of a watched attention, as losses read them."""

import torch
from torch import Tensor

from lightning_kd.capture.attention import AttentionCall

MASKED = -1e30
"""The score of a key that a query does not attend to."""
_ADDED_TO_MASKED = -100.0
"""A mask that adds this or less leaves a key out, as in TinyBERT's code. Swin adds just that."""
_SHOWS_NOTHING = ("indices", "block_indices")
_SINKS = ("s_aux", "sinks")


def read_part(part: str, attended: AttentionCall) -> Tensor:
    """Compute what a loss reads of an attention, in at least float32.

    Probabilities are those before the dropout, as the papers compare them.

    Args:
        part: ``"scores"`` and ``"probabilities"`` are (B, H, T, T), with the keys and values of a group of heads
            repeated for each head; ``"queries"``, ``"keys"`` and ``"values"`` are (B, T, C), all heads together.
        attended: What the attention was called with.

    Raises:
        ValueError: If the attention has something that what it was called with does not show.

    Example:
        >>> from lightning_kd.capture.attention import Attended
        >>> one = torch.ones(1, 1, 2, 4)
        >>> read_part("scores", Attended(one, one, one, None, True))  # 4 / sqrt(4), and no later key
        tensor([[[[ 2.0000e+00, -1.0000e+30],
                  [ 2.0000e+00,  2.0000e+00]]]])
        >>> read_part("queries", Attended(one, one, one, None, True)).shape
        torch.Size([1, 2, 4])
    """
    if attended.refusal:
        raise ValueError(attended.refusal)
    if part in ("queries", "keys", "values"):
        value = attended.query if part == "queries" else attended.key if part == "keys" else attended.value
        return value.transpose(1, 2).flatten(2)
    _check_shows_all(part, attended)
    with torch.autocast(attended.query.device.type, enabled=False):
        scores = _scores(attended)
        return torch.softmax(scores, -1) if part == "probabilities" else scores


def _scores(attended: AttentionCall) -> Tensor:
    query, key, options = _wide(attended.query), _wide(attended.key), attended.options
    if key.shape[1] != query.shape[1]:
        key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
    causal = attended.causal and attended.mask is None and query.shape[2] > 1
    if causal:  # as transformers does with a cache that is longer than what it holds
        key = key[:, :, : query.shape[2]]
    scaling = options.get("scaling")
    scores: Tensor = query @ key.transpose(2, 3) * (query.shape[3] ** -0.5 if scaling is None else scaling)
    softcap = options.get("softcap")
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    bias = options.get("position_bias")
    if bias is not None:
        scores = scores + bias[..., : key.shape[2]]
    if causal:
        earlier = torch.ones(scores.shape[2:], dtype=torch.bool, device=scores.device).tril()
        return scores.masked_fill(~earlier, MASKED)
    mask = attended.mask
    if mask is None:
        return scores
    if mask.dtype == torch.bool:
        return scores.masked_fill(~mask, MASKED)
    return (scores + mask).masked_fill(mask <= _ADDED_TO_MASKED, MASKED)


def _check_shows_all(part: str, attended: AttentionCall) -> None:
    """Raise a ``ValueError`` if scores or probabilities cannot be known of what an attention was called with."""
    options = attended.options
    hidden = [name for name in _SHOWS_NOTHING if options.get(name) is not None]
    if part == "probabilities":
        hidden += [name for name in _SINKS if options.get(name) is not None]
    if hidden:
        raise ValueError(
            f"its attention takes {hidden[0]!r} besides, so its {part} are not those of its queries and keys; "
            "compare queries, keys and values by QKVRelationLoss, or hidden states by HiddenStateLoss"
        )
    if attended.query.ndim != 4 or attended.key.ndim != 4:
        raise ValueError(
            f"its attention has queries {tuple(attended.query.shape)} and keys {tuple(attended.key.shape)}, not "
            "(B, H, T, D); compare hidden states by HiddenStateLoss"
        )


def _wide(value: Tensor) -> Tensor:
    return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value
