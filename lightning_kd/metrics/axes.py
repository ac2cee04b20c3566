"""Where the classes are in class scores, and which target has one id for every position."""

import torch
from torch import Tensor


def axis_of_classes(student: Tensor, target: Tensor | None = None) -> int:
    """Return the axis of the classes: 1, but the last of tokens (B, N, V) and where only that fits the target."""
    last = student.ndim - 1
    if student.ndim < 3:
        return last
    first, second = (last, 1) if student.ndim == 3 else (1, last)
    if target is None or ids_of(student, target, first) is not None or target.shape == student.shape:
        return first
    return first if ids_of(student, target, second) is None else second


def ids_of(student: Tensor, target: Tensor, axis: int | None) -> Tensor | None:
    """Return the target as one id for every position, if its shape is so; ``None`` for the axis tries each."""
    if student.ndim < 2:
        return None
    axes = (1, student.ndim - 1) if axis is None else (axis,)
    for one in axes:
        positions = torch.Size(size for i, size in enumerate(student.shape) if i != one)
        found = target if target.shape == positions else without_channel(target, positions)
        if found is not None and student.shape[one] > 1:
            return found
    return None


def without_channel(target: Tensor, positions: torch.Size) -> Tensor | None:
    """Return ids (B, 1) or (B, 1, H, W) without their axis of length 1, if that gives one id for every position."""
    if target.ndim == len(positions) + 1 and target.shape[1] == 1 and target.squeeze(1).shape == positions:
        return target.squeeze(1)
    return None
