"""The tensors in what a network is called with: by themselves, in containers, and in objects such as graphs."""

from collections.abc import Iterable, Mapping
from types import FunctionType, ModuleType
from typing import Any, TypeAlias

from torch import Tensor, nn

Path: TypeAlias = tuple[object, ...]
"""Where a tensor is: the place or name of the input, then keys, places and attributes."""

_DEEPEST = 4
_NO_CONTAINERS = (str, bytes, int, float, complex, type, type(None), nn.Module, ModuleType, FunctionType)


def tensors_in(args: Iterable[Any], kwargs: Mapping[str, Any] | None = None) -> dict[Path, Tensor]:
    """Return the tensors in positional and named inputs, by where they are.

    Lists, tuples and mappings are looked into, and the attributes of objects, as batches of graphs are; of an object
    within an object only what is such a container.

    Args:
        args: The positional inputs.
        kwargs: The named inputs.

    Example:
        >>> import torch
        >>> x, y = torch.zeros(2), torch.ones(2)
        >>> [*tensors_in((x, {"mask": [y]}), {"size": 3})]
        [(0,), (1, 'mask', 0)]
    """
    found: dict[Path, Tensor] = {}
    for name, value in (*enumerate(args), *(kwargs or {}).items()):
        if isinstance(value, Tensor):
            found[(name,)] = value
        elif not isinstance(value, _NO_CONTAINERS):
            _look_into(value, (name,), found, may_be_object=True)
    return found


def is_held(held: Mapping[Path, Tensor], now: Mapping[Path, Tensor]) -> bool:
    """Whether tensors are where they were; what was added beside them does not matter.

    Example:
        >>> import torch
        >>> batch = {"x": torch.zeros(2)}
        >>> held = tensors_in((batch,))
        >>> batch["features"] = torch.ones(3)
        >>> is_held(held, tensors_in((batch,)))
        True
        >>> batch["x"] = batch["x"] + 1
        >>> is_held(held, tensors_in((batch,)))
        False
    """
    return all(now.get(path) is tensor for path, tensor in held.items())


def _look_into(value: Any, path: Path, found: dict[Path, Tensor], *, may_be_object: bool) -> None:
    parts: Iterable[tuple[object, Any]] = ()
    if isinstance(value, Mapping):
        parts = value.items()
    elif isinstance(value, tuple | list):
        parts = enumerate(value)
    elif may_be_object:
        parts, may_be_object = getattr(value, "__dict__", {}).items(), False
    for name, part in parts:
        if isinstance(part, Tensor):
            found[(*path, name)] = part
        elif len(path) < _DEEPEST and not isinstance(part, _NO_CONTAINERS):
            _look_into(part, (*path, name), found, may_be_object=may_be_object)
