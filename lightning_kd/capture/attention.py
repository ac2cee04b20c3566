"""What a block of a Hugging Face model attends to: its queries, keys and values, taken where its attention is called.

Models of transformers call their attention by a name in their configuration, through ``AttentionInterface``. While a
block is watched, its attention module has a copy of the configuration with a name of ours. The function of that name
keeps references to what it is given, and calls what the model's own name stands for, so every number stays what it is.
The model's own configuration, by which its masks are made, is not touched.
"""

import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from lightning_kd.capture.private import attention_backend, version_of, with_attention_backend

Part = Literal["scores", "probabilities", "queries", "keys", "values"]
"""What is read of a block's attention."""

_PLACE = re.compile(r"<(scores|probabilities|queries|keys|values) of (.+)>")
_SERVED = ("eager", "sdpa")
_PREFIX = "lightning_kd_"
_TAP = "lightning_kd_tap"
_INTERFACE = "ALL_ATTENTION_FUNCTIONS"
_EAGER = "eager_attention_forward"


@dataclass(slots=True)
class Attended:
    """What the attention of a block was called with.

    Args:
        query: Queries (B, H, T, D), of rotary models after the rotation.
        key: Keys (B, G, T, D); a group of heads may share one.
        value: Values (B, G, T, D).
        mask: What the model's own backend gets: added to the scores, or where they count; ``None`` for all.
        causal: Whether a missing mask means that no query sees a later key, as for ``sdpa``.
        options: The other arguments, by name.
        refusal: Why it cannot be read, and what to do instead; ``""`` if it can.
        of_samples: Whether each row must be a sample of the network's input, so that windows are refused.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    causal: bool
    options: dict[str, Any] = field(default_factory=dict)
    versions: tuple[int, ...] = ()
    refusal: str = ""
    of_samples: bool = False

    def __post_init__(self) -> None:
        if not torch.compiler.is_compiling():  # a compiled graph counts no changes
            self.versions = self._versions_now()

    @property
    def changed(self) -> bool:
        """Whether queries, keys or values were changed in place since."""
        return bool(self.versions) and self._versions_now() != self.versions

    def _versions_now(self) -> tuple[int, ...]:
        return tuple(version_of(one) for one in (self.query, self.key, self.value))


class AttentionCall(Protocol):
    """What an attention was called with, as it is read: an :class:`Attended`, or what computes the same when asked."""

    @property
    def query(self) -> Tensor:
        """Queries (B, H, T, D)."""

    @property
    def key(self) -> Tensor:
        """Keys (B, G, T, D)."""

    @property
    def value(self) -> Tensor:
        """Values (B, G, T, D)."""

    @property
    def mask(self) -> Tensor | None:
        """What is added to the scores, or where they count."""

    @property
    def causal(self) -> bool:
        """Whether a missing mask means that no query sees a later key."""

    @property
    def options(self) -> dict[str, Any]:
        """The other arguments, by name."""

    @property
    def refusal(self) -> str:
        """Why it cannot be read, ``""`` if it can."""

    @property
    def of_samples(self) -> bool:
        """Whether each row must be a sample of the network's input."""

    @property
    def changed(self) -> bool:
        """Whether what it is made of was changed in place since."""


Take = Callable[[nn.Module, AttentionCall], None]


def place_of(part: Part, block: str) -> str:
    """Return the name under which what is read of a block's attention stands among the layers.

    Example:
        >>> place_of("scores", "model.layers.3")
        '<scores of model.layers.3>'
    """
    return f"<{part} of {block}>"


def part_and_block(layer: str) -> tuple[str, str] | None:
    """Return what such a name says, ``None`` for the name of a module.

    Example:
        >>> part_and_block("<scores of model.layers.3>"), part_and_block("model.layers.3")
        (('scores', 'model.layers.3'), None)
    """
    found = _PLACE.fullmatch(layer)
    return None if found is None else (found[1], found[2])


def attentions_in(block: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules of a block, itself included, whose attention goes through transformers' interface."""
    for name, module in block.named_modules():
        if _called_by(type(module)) is not None and _backend(module) is not None:
            yield name, module


def check_backend(attention: nn.Module, block: str, role: str) -> None:
    """Raise a ``ValueError`` if an attention module computes its attention in a way that shows nothing of it.

    Args:
        attention: The attention module.
        block: The dotted name of its block, for messages.
        role: ``"student"`` or ``"teacher"``, for messages.
    """
    backend = _backend(attention)
    if backend not in _SERVED:
        raise ValueError(
            f"The {role}'s {block!r} computes its attention by {backend!r}, which is given no mask that says what is "
            "attended to. Load the model with attn_implementation='sdpa', or call "
            "model.set_attn_implementation('sdpa') before the fit."
        )
    if backend == "eager" and getattr(attention, "reorder_and_upcast_attn", False):
        raise ValueError(
            f"The {role}'s {block!r} has reorder_and_upcast_attn=True, with which it computes its attention past "
            "transformers' interface. Load the model without it, or with attn_implementation='sdpa'."
        )


class Watch:
    """Shows a function what an attention module's attention is called with, until it is removed.

    Args:
        module: The attention module.
        take: The function, which is given the module and what it attends to.
    """

    def __init__(self, module: nn.Module, take: Take) -> None:
        self.module = module
        self.take = take
        tap = _tap_of(module)
        if tap is None:
            tap = _Tap(module)
            vars(module)["config"] = tap.copied
        tap.takes.append(take)

    def remove(self) -> None:
        """Show it no more; without any other, the module gets its own configuration back."""
        _leave(self.module, self.take)


def leave_all(network: nn.Module, condition: Callable[[object], bool]) -> None:
    """Take what satisfies a condition off every attention of a network, such as the copy of a watched one."""
    leave_where(network, condition, _tap_of, _leave)


def leave_where(
    network: nn.Module,
    condition: Callable[[object], bool],
    tap_of: Callable[[nn.Module], Any],
    leave: Callable[[nn.Module, Take], None],
) -> None:
    """Take what satisfies a condition off every watched module of a network.

    Args:
        network: The network.
        condition: Which functions are taken off.
        tap_of: Returns what stands at a watched module, with its functions as ``takes``.
        leave: Takes a function off a module.
    """
    for module in network.modules():
        tap = tap_of(module)
        for take in [one for one in tap.takes if condition(one)] if tap is not None else ():
            leave(module, take)


def _leave(module: nn.Module, take: Take) -> None:
    tap = _tap_of(module)
    if tap is None:
        return
    tap.takes = [one for one in tap.takes if one is not take]
    if not tap.takes:
        vars(module)["config"] = tap.own


class _Tap:
    """Stands in the copied configuration of a module whose attention is watched."""

    def __init__(self, module: nn.Module) -> None:
        self.own: Any = module.config
        self.takes: list[Take] = []
        backend = attention_backend(self.own)
        called_by = _called_by(type(module))
        assert backend is not None, "find_attention has looked"
        assert called_by is not None, "find_attention has looked"
        self.attend: Callable[..., Any] = called_by[0].get_interface(backend, called_by[1])
        self.is_sdpa = backend == "sdpa"
        self.copied = with_attention_backend(self.own, _registered(backend))
        setattr(self.copied, _TAP, self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take up a pickled state: in another process the name may not be known yet."""
        vars(self).update(state)
        _registered("sdpa" if self.is_sdpa else "eager")


def _backend(module: nn.Module) -> str | None:
    """Return the name by which a module calls its attention when it is not watched."""
    tap = _tap_of(module)
    return attention_backend(vars(module).get("config") if tap is None else tap.own)


def _tap_of(module: nn.Module) -> _Tap | None:
    found = getattr(vars(module).get("config"), _TAP, None)
    return found if isinstance(found, _Tap) else None


def _attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None = None, **options: Any
) -> Any:
    """Show what attention is called with to who watches, and call what the model would have called."""
    tap: _Tap = getattr(module.config, _TAP)
    causal = options.get("is_causal")
    if causal is None:
        causal = getattr(module, "is_causal", True)
    attended = Attended(query, key, value, attention_mask, tap.is_sdpa and bool(causal), options)
    for take in tap.takes:
        take(module, attended)
    return tap.attend(module, query, key, value, attention_mask, **options)


def _registered(backend: str) -> str:
    """Return the name of ours for a backend, which transformers knows from now on, with the masks of that backend."""
    from transformers import AttentionInterface, AttentionMaskInterface

    name = f"{_PREFIX}{backend}"
    masks = AttentionMaskInterface()
    if backend in masks:
        AttentionMaskInterface.register(name, masks[backend])
    AttentionInterface.register(name, _attend)
    return name


def _called_by(kind: type) -> tuple[Any, Callable[..., Any] | None] | None:
    """Return the interface that a class calls attention by, and the function that stands for ``"eager"`` there."""
    for function in functions_of(kind):
        names = function.__code__.co_names
        if _INTERFACE in names and "get_interface" in names:
            table = function.__globals__
            own = [table[name] for name in names if name.endswith(_EAGER) and name in table]
            return table[_INTERFACE], own[0] if len(own) == 1 else None
    return None


def functions_of(kind: type) -> Iterator[Any]:
    """Yield the functions that the classes of a module define, without those of ``nn.Module`` itself."""
    for one in kind.__mro__:
        if one in (nn.Module, object):
            continue
        for member in vars(one).values():
            function = inspect.unwrap(member) if callable(member) else None
            if inspect.isfunction(function):
                yield function
