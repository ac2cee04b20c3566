"""Where the channels of a tensor are, followed from operation to operation: through views, copies and sums.

A linear layer acts on the last axis, whatever stands there. On (B, C, N) it mixes tokens or time, and the channels stay
on axis 1. The layer itself does not tell. So the axis of the channels is followed from the module that made them.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lightning_kd.capture.watch import OperationWatch

TURNED = -1
"""Stands for an axis: the last one does not hold what it held before, and no module tells what it holds now."""

_MAPS = {"conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "interpolate"}
_MIXES = {"linear", "matmul", "mm", "bmm", "baddbmm", "einsum", "bilinear", "reshape", "view", "t", "mT", "T", "gather"}
_MIXES |= {
    "transpose",
    "permute",
    "swapaxes",
    "swapdims",
    "movedim",
    "moveaxis",
    "rot90",
    "scaled_dot_product_attention",
}
_MIXES |= {"multi_head_attention_forward", "stack", "tensordot", "cdist", "embedding", "get", "roll"}


class Origins(OperationWatch):
    """Notes inside the block on which axis every tensor has its channels, as far as modules or operations tell.

    Example:
        >>> with Origins() as origins:
        ...     tokens = torch.ones(2, 5, 3)
        ...     origins.note(tokens, 2)
        ...     turned = (tokens + 1).transpose(1, 2).contiguous()
        >>> turned.shape, origins.axis(turned), origins.axis(torch.ones(2, 3))
        (torch.Size([2, 3, 5]), 1, None)
    """

    def __init__(self) -> None:
        super().__init__()
        self._axes: dict[int, int] = {}
        self._alive: list[Tensor] = []  # an identity is used again when its tensor is gone

    def see(self, func: Callable[..., Any], args: Any, kwargs: dict[str, Any], made: Any) -> None:
        """Follow the channels of what an operation was given to what it returned."""
        results = [one for one in (made if isinstance(made, tuple | list) else (made,)) if _has_positions(one)]
        if not results:
            return
        outer = args[0] if args and isinstance(args[0], tuple | list) else ()
        given = [one for one in (*outer, *args) if _has_positions(one)]
        name = getattr(func, "__name__", "").strip("_")
        for result in results:
            if id(result) not in self._axes and not any(result is one for one in given):
                self.note(result, self._follow(name, given, result))

    def note(self, value: Tensor, axis: int | None) -> None:
        """Note the axis of the channels of a tensor, or ``TURNED``; ``None`` is not noted."""
        if axis is not None and value.ndim > 2:
            self._axes[id(value)] = axis
            self._alive.append(value)

    def axis(self, value: Tensor | None) -> int | None:
        """Return the axis of the channels of a tensor, ``TURNED``, or ``None`` if nothing tells."""
        return None if value is None else self._axes.get(id(value))

    def _follow(self, name: str, given: list[Tensor], result: Tensor) -> int | None:
        unknown = None
        for value in given:
            axis = self.axis(value)
            if value.untyped_storage() is result.untyped_storage():
                found = _view(value, axis, result)
            elif name in _MAPS and axis in (None, 1):
                found = 1
            elif name in _MIXES and value.shape != result.shape:
                found = None
            elif axis == TURNED:
                found = TURNED if [one.shape for one in given] == [result.shape] else None
            else:
                found = _kept(value, axis, result)
            if name in _MIXES and value.untyped_storage() is not result.untyped_storage():
                found = found if name == "reshape" else None
            if found is not None and found != TURNED:
                return found
            unknown = unknown or found
        return unknown


def _has_positions(value: object) -> bool:
    return isinstance(value, Tensor) and value.ndim > 2 and value.layout is torch.strided


def _view(value: Tensor, axis: int | None, result: Tensor) -> int | None:
    """Return where a view of a tensor has its channels: the axis that goes through memory in the same steps."""
    if axis is None or axis == TURNED:
        if value.ndim == result.ndim == 3 and value.shape == result.shape and value.stride() == result.stride():
            return axis
        turns = value.ndim == 3 and _is_turned(result) != _is_turned(value)
        return TURNED if turns and axis is None and _is_turned(result) else None
    size, step = value.shape[axis], value.stride()[axis]
    if size == 1:
        return axis if value.shape == result.shape else None
    fitting = [i for i, length in enumerate(result.shape) if result.stride()[i] == step and 1 < length <= size]
    return fitting[0] if len(fitting) == 1 else None


def _kept(value: Tensor, axis: int | None, result: Tensor) -> int | None:
    """Return the axis if the result has as many channels there, and differs from the tensor in one size at most."""
    if axis is None or value.ndim != result.ndim or value.shape[axis] != result.shape[axis]:
        return None
    return axis if sum(one != two for one, two in zip(value.shape, result.shape, strict=True)) <= 1 else None


def _is_turned(value: Tensor) -> bool:
    """Whether neighbours on the last axis of (B, X, Y) are no neighbours in memory."""
    if value.ndim != 3 or value.shape[-1] == 1:
        return False
    return any(
        length > 1 and 0 < step < value.stride()[-1] for length, step in zip(value.shape, value.stride(), strict=True)
    )
