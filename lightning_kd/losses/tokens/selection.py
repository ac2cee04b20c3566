"""Which positions of a batch of tokens count, and their choice before anything is computed of them."""

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORE_INDEX = -100
"""The label of a token that is no target, as in ``torch.nn.functional.cross_entropy``."""


def counting_positions(
    function: str,
    positions: torch.Size,
    *,
    labels: Tensor | None = None,
    mask: Tensor | None = None,
    ignore_index: int = IGNORE_INDEX,
    shift: bool = False,
    device: torch.device | None = None,
    starts: Tensor | None = None,
) -> Tensor | None:
    """Return which positions count, or ``None`` if all do.

    Args:
        function: Who asks, for errors.
        positions: Shape of the positions, ``logits.shape[:-1]``.
        labels: Label of each position; one that is ``ignore_index`` does not count.
        mask: Which tokens are no padding.
        ignore_index: Label of a token that is no target.
        shift: Whether a position predicts the token after it. Then that token decides by its label, and both must be
            no padding; the last position predicts nothing.
        device: Where the answer is needed.
        starts: Which tokens are the first of a document, which the document before does not predict.

    Raises:
        ValueError: If a shape or type does not suit the logits.
    """
    if labels is not None and not isinstance(labels, Tensor):  # as of a detector, a dictionary for each image
        raise ValueError(
            f"{function}: expected labels that are token ids, one for each position {tuple(positions)}, got a "
            f"{type(labels).__name__}. If all positions are to count whatever their labels, write "
            "TokenKDLoss(tokens='mask')."
        )
    for name, given in (("labels", labels), ("mask", mask)):
        if given is not None and given.shape != positions:
            raise ValueError(
                f"{function}: expected {name} of shape {tuple(positions)}, one for each position of the logits, got "
                f"{tuple(given.shape)}."
            )
    if labels is not None and (labels.is_floating_point() or labels.dtype == torch.bool):
        raise ValueError(f"{function}: expected labels that are token ids, got {labels.dtype}.")
    if labels is None and ignore_index != IGNORE_INDEX:
        raise ValueError(f"{function}: ignore_index={ignore_index} has no effect without labels.")
    if shift and len(positions) < 2:
        raise ValueError(
            f"{function}: shift=True needs logits (B, T, V), got positions of shape {tuple(positions)}, of which it "
            "cannot be told where a row ends."
        )
    target = None if labels is None else labels != ignore_index
    real = None if mask is None else mask.bool()
    if shift:
        counts = _of_the_next(positions, target, real, device)
        if starts is not None:
            counts[..., :-1] &= ~starts[..., 1:].to(counts.device)
        return counts
    if target is None or real is None:
        return real if target is None else target
    return target & real


def _of_the_next(
    positions: torch.Size, target: Tensor | None, real: Tensor | None, device: torch.device | None
) -> Tensor:
    counts = torch.ones(positions, dtype=torch.bool, device=device)
    counts[..., -1:] = False
    if target is not None:
        counts[..., :-1] &= target[..., 1:]
    if real is not None:
        counts[..., :-1] &= real[..., 1:] & real[..., :-1]
    return counts


def predicted(labels: Tensor, shift: bool, ignore_index: int) -> Tensor:
    """Return the label of the token that each position predicts."""
    return F.pad(labels[..., 1:], (0, 1), value=ignore_index) if shift else labels


def choose(values: Tensor, counts: Tensor | None, axes: int = 1) -> Tensor:
    """Return the positions that count as rows (M, ...), so that NaN at the others reaches nothing.

    In a compiled graph, where no shape may depend on values, the others are set to zero instead.

    Args:
        values: Values of each position.
        counts: Which positions count, ``None`` for all.
        axes: How many axes of ``values`` do not count positions.
    """
    rows = values.flatten(0, -1 - axes) if values.ndim > axes + 1 else values
    if counts is None:
        return rows
    chosen = counts.flatten()
    if torch.compiler.is_compiling():
        return torch.where(chosen.reshape(-1, *[1] * axes), rows, 0)
    return rows[chosen]


def sum_of_counting(values: Tensor, counts: Tensor | None) -> Tensor:
    """Add up one value of each row that :func:`choose` has returned."""
    if counts is not None and torch.compiler.is_compiling():
        values = torch.where(counts.flatten(), values, 0.0)
    return values.sum()


def number(counts: Tensor | None, positions: torch.Size) -> Tensor:
    """Return how many positions count."""
    return torch.tensor(positions.numel()) if counts is None else counts.sum()
