"""Which attention a block has, and how it is watched: behind transformers' interface, of torch's layer, or called."""

from collections.abc import Callable, Iterator
from typing import Protocol

from torch import nn

from lightning_kd.capture import attention
from lightning_kd.capture.attention import Take, attentions_in, check_backend
from lightning_kd.capture.attention_calls import CallWatch, callers_in, check_is_fused, leave_calls
from lightning_kd.capture.multihead import check_adds_no_key, is_multihead, watch_multihead

_OTHERS = ("Attention", "Attn")


class Handle(Protocol):
    """What ends a watch."""

    def remove(self) -> None:
        """End it."""


def every_attention_in(block: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules of a block, itself included, whose attention can be watched.

    Where transformers' interface is used, only what goes through it.

    Example:
        >>> [name for name, _ in every_attention_in(nn.TransformerEncoderLayer(4, 2))]
        ['self_attn']
    """
    found = dict(attentions_in(block))
    if not found:
        callers = dict(callers_in(block))
        found = {name: module for name, module in block.named_modules() if is_multihead(module) or name in callers}
    yield from found.items()


def find_attention(module: nn.Module, block: str, role: str) -> nn.Module | None:
    """Return the module that computes the attention of a block, ``None`` if it has none that can be watched.

    Args:
        module: The block, or the attention module itself.
        block: Its dotted name, for messages.
        role: ``"student"`` or ``"teacher"``, for messages.

    Raises:
        ValueError: If it has several, or computes attention in a way that shows nothing of it.
    """
    found = dict(every_attention_in(module))
    if not found:
        return None
    if len(found) > 1:
        names = ", ".join(f"{block}.{name}" if name else block for name in list(found)[:4])
        more = f" and {len(found) - 4} more" if len(found) > 4 else ""
        raise ValueError(
            f"The {role}'s {block!r} has {len(found)} attentions, so which is meant is not known. Name one: "
            f"{names}{more}."
        )
    (one,) = found.values()
    if is_behind_interface(one):
        check_backend(one, block, role)
    elif is_multihead(one):
        check_adds_no_key(one, block, role)
    else:
        check_is_fused(one, block, role)
    return one


def is_behind_interface(module: nn.Module) -> bool:
    """Whether a module's own attention goes through transformers' interface."""
    return any(one is module for _, one in attentions_in(module))


def kinds_of_attention(block: nn.Module) -> list[str]:
    """Return the classes in a block that compute attention by their names, for the words of a refusal."""
    kinds = (type(module).__name__ for module in block.modules())
    return list(dict.fromkeys(kind for kind in kinds if kind.endswith(_OTHERS)))


def watch(module: nn.Module, take: Take) -> Handle:
    """Show a function what an attention module attends to, until the handle is removed.

    Args:
        module: The attention module, which :func:`find_attention` has found.
        take: The function, which is given the module and what it attends to.
    """
    if is_behind_interface(module):
        return attention.Watch(module, take)
    return watch_multihead(module, take) if is_multihead(module) else CallWatch(module, take)


def leave_all(network: nn.Module, condition: Callable[[object], bool]) -> None:
    """Take what satisfies a condition off every attention of a network, such as the copy of a watched one."""
    attention.leave_all(network, condition)
    leave_calls(network, condition)
