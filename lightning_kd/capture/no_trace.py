"""Run a piece of a user's code, and undo what it changed in a module."""

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parameter import is_lazy

from lightning_kd.capture.generators import as_they_were, generators_of
from lightning_kd.capture.private import TorchDispatchMode, is_traceable_wrapper_subclass, is_writing, tree_leaves


@contextmanager
def leaving_no_trace(module: nn.Module) -> Iterator[None]:
    """Restore a module's attributes, parameters, buffers and random generators after the block to what they were.

    A tensor is copied only when the block first writes to it. The sizes that a lazy layer takes from its first input
    are kept, because a lazy layer is set up once only.

    Args:
        module: The module; its parts are restored too.

    Example:
        >>> layer = nn.Linear(1, 1)
        >>> _ = nn.init.constant_(layer.weight, 2.0)
        >>> with leaving_no_trace(layer), torch.no_grad():
        ...     layer.seen = 1
        ...     _ = layer.weight.mul_(3.0)
        >>> layer.weight.item(), hasattr(layer, "seen")
        (2.0, False)
    """
    attributes = [_remember(vars(part)) for part in module.modules() if not isinstance(part, LazyModuleMixin)]
    copies = _CopyOnWrite(module)
    try:
        with as_they_were(generators_of([module])), copies:
            yield
    finally:
        for restore in attributes:
            restore()
        copies.restore()


class _CopyOnWrite(TorchDispatchMode):
    """Copies a tensor of a module before the first operation that writes to it."""

    def __init__(self, module: nn.Module) -> None:
        TorchDispatchMode.__init__(self)
        self._tensors: dict[int, list[Tensor]] = {}
        for tensor in (*module.parameters(), *module.buffers()):
            self._tensors.setdefault(_address(tensor), []).append(tensor)
        self._tensors.pop(0, None)
        self._copies: list[tuple[Tensor, Tensor]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if is_writing(func):
            for leaf in tree_leaves((args, kwargs)):
                if isinstance(leaf, Tensor):
                    written = self._tensors.pop(_address(leaf), ())
                    self._copies += [(tensor, tensor.detach().clone()) for tensor in written]
        return func(*args, **(kwargs or {}))

    @torch.no_grad()
    def restore(self) -> None:
        for tensor, copy in self._copies:
            tensor.copy_(copy)


def _address(tensor: Tensor) -> int:
    """Return where a tensor's values are in memory, which its views share; 0 if it has no memory of its own."""
    if is_lazy(tensor) or tensor.is_meta or is_traceable_wrapper_subclass(tensor):
        return 0
    return tensor.untyped_storage().data_ptr()


def _remember(attributes: dict[str, Any]) -> Callable[[], None]:
    """Return a function that restores attributes, and the plain containers among them, to what they hold now."""
    kept = dict(attributes)
    held = [(value, value.copy()) for value in kept.values() if type(value) in (dict, OrderedDict, list, set, deque)]

    def restore() -> None:
        attributes.clear()
        attributes.update(kept)
        for container, content in held:
            container.clear()
            container.extend(content) if isinstance(container, list | deque) else container.update(content)

    return restore
