"""Inputs of a student: a checkpoint holds their sizes, and zeros of those sizes stand for them in an export."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_kd.capture.batch import Batch
from lightning_kd.capture.private import tree_leaves, tree_map_only

Example = Tensor | tuple[Any, ...] | list[Any] | Mapping[str, Any] | Batch
"""Inputs of a model: one tensor, a tuple of positional ones, a dictionary of named ones, or a Batch for both."""


def as_call(example: Example) -> Batch:
    """Return an example as the ``args`` and ``kwargs`` of a batch.

    Args:
        example: One tensor, a tuple or list of positional inputs, a dictionary of named ones, or a Batch for both.

    Raises:
        TypeError: If it is something else.

    Example:
        >>> as_call({"x": torch.ones(1)}).kwargs, as_call((1, 2)).args
        ({'x': tensor([1.])}, (1, 2))
    """
    if isinstance(example, Batch):
        return example
    if isinstance(example, Tensor):
        return Batch(args=(example,))
    if isinstance(example, Mapping):
        return Batch(kwargs=dict(example))
    if isinstance(example, tuple | list):
        return Batch(args=tuple(example))
    raise TypeError(
        f"Cannot call the student with an example that is a {type(example).__name__}: expected a tensor, a tuple of "
        "positional inputs, a dictionary of named ones, or a lightning_kd.Batch."
    )


def remember_call(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any] | None:
    """Describe what a model was called with as plain data that holds sizes and formats of tensors, not values.

    Args:
        args: The positional inputs.
        kwargs: The named inputs.

    Returns:
        The description, ``None`` if an input is neither a tensor nor plain data.

    Example:
        >>> described = remember_call((torch.ones(2, 3), True), {})
        >>> described
        {'args': [{'shape': [2, 3], 'dtype': 'float32'}, {'value': True}], 'kwargs': {}}
        >>> zeros_for(described).args
        (tensor([[0., 0., 0.], [0., 0., 0.]]), True)
    """
    try:
        return {"args": [_describe(v) for v in args], "kwargs": {str(k): _describe(v) for k, v in kwargs.items()}}
    except TypeError:
        return None


def zeros_for(described: Mapping[str, Any]) -> Batch:
    """Make the inputs that :func:`remember_call` has described, of zeros."""
    args, kwargs = described["args"], described["kwargs"]
    return Batch(args=tuple(_zeros(v) for v in args), kwargs={name: _zeros(v) for name, v in kwargs.items()})


def on_cpu(call: Batch, dtype: torch.dtype | None) -> Batch:
    """Bring the tensors of a call to the CPU, those of floating point to a format, and double a batch of one sample.

    torch.export takes a size of 1 for a constant, so a program traced with one sample would take one sample only.

    Args:
        call: The inputs.
        dtype: The format, ``None`` to leave each its own.
    """
    size = batch_size(call)

    def bring(value: Tensor) -> Tensor:
        value = value.detach().to("cpu", dtype if value.is_floating_point() else None)
        return torch.cat([value, value]) if size == 1 and value.ndim and len(value) == 1 else value.clone()

    args, kwargs = tree_map_only(Tensor, bring, (call.args, call.kwargs))
    return Batch(args=args, kwargs=kwargs)


def batch_size(call: Batch) -> int | None:
    """Return the first size of the first tensor that has one, which counts the samples."""
    return next((len(v) for v in tree_leaves((call.args, call.kwargs)) if isinstance(v, Tensor) and v.ndim), None)


def _describe(value: object) -> dict[str, Any]:
    if isinstance(value, Tensor):
        return {"shape": list(value.shape), "dtype": str(value.dtype).removeprefix("torch.")}
    if value is None or isinstance(value, bool | int | float | str):
        return {"value": value}
    if type(value) is dict:
        return {"dict": {str(name): _describe(inner) for name, inner in value.items()}}
    if type(value) in (list, tuple):
        return {type(value).__name__: [_describe(inner) for inner in value]}  # type: ignore[attr-defined]
    raise TypeError


def _zeros(described: Mapping[str, Any]) -> Any:
    ((kind, value), *rest) = described.items()
    if kind == "shape":
        return torch.zeros(value, dtype=getattr(torch, rest[0][1]))
    if kind == "dict":
        return {name: _zeros(inner) for name, inner in value.items()}
    if kind == "value":
        return value
    inner = [_zeros(item) for item in value]
    return tuple(inner) if kind == "tuple" else inner
