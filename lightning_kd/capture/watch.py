"""What looks on at the operations on tensors inside a block, and is not seen by others that look on."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from lightning_kd.capture.private import DisableTorchFunction, tree_leaves

_WITHOUT_TENSORS = {int, float, bool, str, type(None), torch.Size, torch.dtype, torch.device, torch.memory_format}
_CHANGE_WITHOUT_RESULT = {"__setitem__"}


class OperationWatch(TorchFunctionMode):
    """Runs every operation inside the block, then hands it to :meth:`see` if it may have made or changed a tensor.

    A mode of torch is left out of its own work only: each would be called for every size that another one looks up.
    So all modes rest while one of these takes its notes.

    Example:
        >>> class Names(OperationWatch):
        ...     def see(self, func, args, kwargs, made):
        ...         print(func.__name__, made.shape)
        >>> with Names():
        ...     maps = torch.ones(2, 3).relu()
        ones torch.Size([2, 3])
        relu torch.Size([2, 3])
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        """Run the operation, and note what it did."""
        kwargs = kwargs or {}
        made = func(*args, **kwargs)
        # most calls only look up a size or a type
        if type(made) not in _WITHOUT_TENSORS or getattr(func, "__name__", "") in _CHANGE_WITHOUT_RESULT:
            with DisableTorchFunction():
                self.see(func, args, kwargs, made)
        return made

    def see(self, func: Callable[..., Any], args: Any, kwargs: dict[str, Any], made: Any) -> None:
        """Take note of an operation.

        Args:
            func: The function of torch.
            args: What it was given.
            kwargs: What it was given by name.
            made: What it returned.
        """
        raise NotImplementedError


def tensors_in(tree: Any) -> list[Tensor]:
    """Return the tensors in nested tuples, lists, dicts and other trees, in order.

    Example:
        >>> len(tensors_in((torch.ones(1), [2, {"weight": torch.ones(3)}])))
        2
    """
    kind = type(tree)
    if isinstance(tree, Tensor):
        return [tree]
    if kind in _WITHOUT_TENSORS:
        return []
    if kind is tuple or kind is list:
        return [tensor for part in tree for tensor in tensors_in(part)]
    if kind is dict:
        return [tensor for part in tree.values() for tensor in tensors_in(part)]
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
