"""Attributes that a network changes when it is called, such as counters and caches, are put back after a look at it."""

from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin

from lightning_kd.capture.generators import as_they_were, generators_of
from lightning_kd.capture.networks import taking_any_device, undisturbed
from lightning_kd.capture.private import is_traceable_wrapper_subclass, version_of

_CONTAINERS = (dict, OrderedDict, list, set, deque)
_PLAIN = (int, float, bool, str, type(None), tuple, *_CONTAINERS)
_OF_TORCH = frozenset(vars(nn.Module()))
_WRAPPERS = {"torch", "lightning", "deepspeed", "bitsandbytes", "torchao"}
"""Packages whose modules note at the first call what is set up once only, as FSDP does."""


@contextmanager
def keeping_attributes(networks: Iterable[nn.Module], but: tuple[type[nn.Module], ...] = ()) -> Iterator[None]:
    """Put back the plain attributes of networks after the block, and the buffers that were written to or are numbers.

    Plain are numbers, texts, ``None``, tuples, tensors, and lists, dictionaries and sets with what they hold. A part
    that makes layers of its own inside the block is left as it is, because such parts are made once only. So are the
    truth values of a part that puts hooks on itself or on what it holds: one of them may note that the hooks are there,
    as models of transformers note it that record their hidden states.

    Args:
        networks: The networks; their parts are put back too.
        but: Classes of parts that are left as they are.

    Example:
        >>> class Counting(nn.Identity):
        ...     calls = 0
        ...     def forward(self, x):
        ...         self.calls += 1
        ...         return x
        >>> net = Counting()
        >>> with keeping_attributes([net]):
        ...     _ = net(torch.ones(1))
        >>> net.calls
        0
    """
    parts = dict.fromkeys(part for network in networks for part in network.modules())
    kept = [_Kept(part) for part in parts if not isinstance(part, (LazyModuleMixin, *but)) and not _notes_set_up(part)]
    try:
        yield
    finally:
        hooked = {one.part for one in kept if one.has_new_hooks}
        for one in kept:
            one.put_back(flags=not hooked or hooked.isdisjoint(one.part.modules()))


@contextmanager
def looking_at(networks: Sequence[nn.Module], module: nn.Module, but: tuple[type[nn.Module], ...]) -> Iterator[None]:
    """Call networks inside the block without a trace, in eval mode, with gradients, on whichever device each is.

    Args:
        networks: The networks.
        module: The whole module, whose modes and own random generators are put back, as are those of the networks.
        but: Classes of parts whose attributes are left as they are.
    """
    with keeping_attributes(networks, but), undisturbed(module), torch.enable_grad(), ExitStack() as stack:
        stack.enter_context(as_they_were(generators_of([module, *networks])))
        for network in networks:
            stack.enter_context(taking_any_device(network))
        yield


class _Kept:
    """What one part holds beside its layers and parameters."""

    def __init__(self, part: nn.Module) -> None:
        self.part = part
        self.layers = _layers(part)
        self.hooks = _hooks(part)
        self.attributes = {name: value for name, value in vars(part).items() if name not in _OF_TORCH}
        self.contents = [(one, one.copy()) for one in self.attributes.values() if type(one) in _CONTAINERS]
        self.buffers = {
            name: (buffer, version_of(buffer), buffer.detach().clone())
            for name, buffer in part.named_buffers(recurse=False)
        }

    @property
    def has_new_hooks(self) -> bool:
        """Whether hooks were put on the part since."""
        return not _hooks(self.part) <= self.hooks

    @torch.no_grad()
    def put_back(self, *, flags: bool) -> None:
        """Put back what the part held; truth values only if asked to."""
        if _layers(self.part) != self.layers:
            return
        now = vars(self.part)
        for name in {**self.attributes, **now}:
            if name in _OF_TORCH or (type(now.get(name)) is bool and not flags):
                continue
            if name not in self.attributes:
                if _is_plain(now[name]):
                    del now[name]
            elif _is_plain(self.attributes[name]):
                now[name] = self.attributes[name]
        for container, content in self.contents:
            container.clear()
            container.extend(content) if isinstance(container, list | deque) else container.update(content)
        for name, (buffer, version, copy) in self.buffers.items():
            if version_of(buffer) != version or _differs(buffer, copy):
                if buffer.shape != copy.shape:  # the range of an observer has no size before its first input
                    buffer.resize_(copy.shape)
                buffer.copy_(copy)
            other = getattr(self.part, name, None)
            # a new number is a count; a new table is a cache, such as one of positions, and stays true
            if other is not buffer and isinstance(other, Tensor) and other.numel() == buffer.numel() == 1:
                setattr(self.part, name, buffer)


def _differs(buffer: Tensor, copy: Tensor) -> bool:
    """Whether a buffer was written to without torch's knowledge, as fused observers of torch.ao do."""
    if buffer.is_meta or is_traceable_wrapper_subclass(buffer):
        return False
    return buffer.shape != copy.shape or not torch.equal(buffer, copy)


def _notes_set_up(part: nn.Module) -> bool:
    """Whether a part is of a package whose modules note what is set up once.

    Observers of torch.ao and torchao note ranges. The parts of an exported network hold buffers that its graph counts
    in, and have the class ``Module`` itself.
    """
    package = type(part).__module__
    observes = package.startswith(("torch.ao.", "torchao.quantization.pt2e."))
    return package.partition(".")[0] in _WRAPPERS and not observes and type(part) is not nn.Module


def _layers(part: nn.Module) -> list[str]:
    """Return the names of the layers and parameters that a part holds itself."""
    return [name for name, _ in (*part.named_children(), *part.named_parameters(recurse=False))]


def _hooks(part: nn.Module) -> set[tuple[str, int]]:
    """Return the hooks on a part, by torch's numbers."""
    return {(kind, number) for kind, of in vars(part).items() if kind.endswith("hooks") for number in of or ()}


def _is_plain(value: Any) -> bool:
    return type(value) in _PLAIN or isinstance(value, Tensor)
