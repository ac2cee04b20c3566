"""Attention of any network, taken where a module calls ``torch.nn.functional.scaled_dot_product_attention``.

While a module is watched, a function of ours stands before its ``forward``. It runs that forward inside a mode of
torch, which sees every call of the function and lets it run as it is, so every number stays what it is.
"""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from types import CodeType, FunctionType, ModuleType
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from lightning_kd.capture.attention import Attended, Take, functions_of, leave_where

_CALLED = "scaled_dot_product_attention"
_ARGUMENTS = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa")
_NOT_OURS = ("torch.", "transformers.")
_HELPERS = 2
"""How deep a forward's helpers are looked into."""
_NO_TOKENS = ("mask", "bias", "rope", "pos")
"""What is in the names of arguments that hold no tokens of their own."""
_KNOWN: WeakKeyDictionary[type, bool] = WeakKeyDictionary()
"""Classes whose code was read."""
_OTHERWISE = "compare hidden states by HiddenStateLoss"


def callers_in(block: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules of a block, itself included, whose own code calls the attention function of torch.

    Example:
        >>> class Attention(nn.Module):
        ...     def forward(self, x):
        ...         return F.scaled_dot_product_attention(x, x, x)
        >>> [name for name, _ in callers_in(nn.Sequential(nn.Linear(2, 2), Attention()))]
        ['1']
    """
    for name, module in block.named_modules():
        if _calls(type(module)):
            yield name, module


def check_is_fused(module: nn.Module, block: str, role: str) -> None:
    """Raise a ``ValueError`` if a module is told to make its attention matrix by hand, as networks of timm can be."""
    if getattr(module, "fused_attn", True) is False:
        raise ValueError(
            f"The {role}'s {block!r} makes its attention matrix by hand, where it cannot be read: its fused_attn is "
            "False. Set fused_attn = True on that attention before the fit, or call timm.layers.set_fused_attn(True) "
            "before the network is made."
        )


class CallWatch:
    """Shows a function what a module's attention is called with, until it is removed.

    Args:
        module: The module, one of :func:`callers_in`.
        take: The function, which is given the module and what it attends to, once for each call of the module.
    """

    def __init__(self, module: nn.Module, take: Take) -> None:
        self.module = module
        self.take = take
        tap = _tap_of(module)
        if tap is None:
            tap = _Tap(module)
            vars(module)["forward"] = partial(_watched, tap)
        tap.takes.append(take)

    def remove(self) -> None:
        """Show it no more; without any other, the module gets its own forward back."""
        _leave(self.module, self.take)


def leave_calls(network: nn.Module, condition: Callable[[object], bool]) -> None:
    """Take what satisfies a condition off every watched module of a network, such as the copy of a watched one."""
    leave_where(network, condition, _tap_of, _leave)


class _Tap:
    """What stands before the forward of a watched module."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.names = tuple(inspect.signature(type(module).forward).parameters)[1:]
        self.own: Callable[..., Any] | None = vars(module).get("forward")
        """The forward that somebody else has put on this module alone."""
        self.takes: list[Take] = []


class _Seen(TorchFunctionMode):
    """Keeps what the attention function is called with inside the block."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Attended] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            self.calls.append(_attended(**{**dict(zip(_ARGUMENTS, args, strict=False)), **kwargs}))
        if func is Tensor.unflatten and torch.compiler.is_compiling():
            func = torch.unflatten  # torch 2.13 cannot compile the method inside a mode
        return func(*args, **kwargs)


def _attended(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Attended:
    """Return what a call of the attention function attends to, before it runs."""
    return Attended(query, key, value, attn_mask, is_causal, {"scaling": scale}, of_samples=True)


def _watched(tap: _Tap, *args: Any, **kwargs: Any) -> Any:
    """Run the forward of a watched module, and show what its attention was called with."""
    seen = _Seen()
    with seen:
        output = type(tap.module).forward(tap.module, *args, **kwargs) if tap.own is None else tap.own(*args, **kwargs)
    refusal = _refusal(seen.calls, {**dict(zip(tap.names, args, strict=False)), **kwargs})
    attended = unread(refusal) if refusal else seen.calls[0]
    for take in tap.takes:
        take(tap.module, attended)
    return output


def unread(refusal: str) -> Attended:
    """Return what stands for an attention that cannot be read.

    Args:
        refusal: Why not, and what to do instead.
    """
    none = torch.empty(0)
    return Attended(none, none, none, None, False, refusal=refusal)


def _refusal(calls: list[Attended], given: Mapping[str, Any]) -> str:
    if not calls:
        return (
            f"it has not called torch.nn.functional.{_CALLED}, so its attention matrix was made by hand. Switch on "
            "what makes it call that function, such as fused_attn = True of networks of timm; name a module that "
            f"returns what is compared; or {_OTHERWISE}"
        )
    if len(calls) > 1:
        return (
            f"it calls torch.nn.functional.{_CALLED} {len(calls)} times in one forward pass, so which is meant is not "
            f"known. Put each in a module of its own, and name one; or {_OTHERWISE}"
        )
    query, key = calls[0].query, calls[0].key
    if query.ndim != 4 or key.ndim != 4:
        return (
            f"its attention has queries {tuple(query.shape)} and keys {tuple(key.shape)}, not (B, H, T, D). Call "
            f"torch.nn.functional.{_CALLED} with an axis of heads, which may have the length 1; or {_OTHERWISE}"
        )
    return other_tokens(query.shape[2], key.shape[2]) or _second_input(query, given)


def other_tokens(queries: int, keys: int) -> str:
    """Return why an attention of so many queries and keys is not compared, ``""`` if it is."""
    if queries == keys:
        return ""
    return (
        f"its {queries} queries attend to {keys} keys, as in attention to another sequence, to pooled tokens or of one "
        f"token alone, and one mask cannot tell the padding of both. Name a block whose tokens attend to one another, "
        f"or {_OTHERWISE}"
    )


def _second_input(query: Tensor, given: Mapping[str, Any]) -> str:
    """Return why attention to a second sequence of the same length is not compared, ``""`` without one.

    Three inputs that differ are queries, keys and values that were made elsewhere.
    """
    named = [one for name, one in given.items() if not any(word in name for word in _NO_TOKENS)]
    tokens = [
        one
        for one in named
        if isinstance(one, Tensor) and one.ndim == 3 and tuple(one.shape[:2]) == (query.shape[0], query.shape[2])
    ]
    if len(tokens) < 2 or tokens[1] is tokens[0] or (len(tokens) > 2 and tokens[2] is not tokens[1]):
        return ""
    return (
        "it was given two sequences of tokens, so its queries may be of one and its keys of the other. Name a "
        f"block whose tokens attend to one another, or {_OTHERWISE}"
    )


def _leave(module: nn.Module, take: Take) -> None:
    tap = _tap_of(module)
    if tap is None:
        return
    tap.takes = [one for one in tap.takes if one is not take]
    if tap.takes:
        return
    if tap.own is None:
        del vars(module)["forward"]
    else:
        vars(module)["forward"] = tap.own


def _tap_of(module: nn.Module) -> _Tap | None:
    found = vars(module).get("forward")
    return found.args[0] if isinstance(found, partial) and found.func is _watched else None


def _calls(kind: type) -> bool:
    """Whether the own code of a class calls the attention function, or a helper of its package that does."""
    known = _KNOWN.get(kind)
    if known is None:
        own = (function for function in functions_of(kind) if not _is_of_others(function))
        _KNOWN[kind] = known = any(_reaches(function, _HELPERS) for function in own)
    return known


def _reaches(function: FunctionType, depth: int) -> bool:
    names = set(_names(function.__code__))
    if _CALLED in names:
        return True
    if not depth:
        return False
    table = function.__globals__
    places = [table, *(vars(table[name]) for name in names if isinstance(table.get(name), ModuleType))]
    helpers = (inspect.unwrap(place[name]) for place in places for name in names if callable(place.get(name)))
    return any(_reaches(one, depth - 1) for one in helpers if inspect.isfunction(one) and not _is_of_others(one))


def _is_of_others(function: FunctionType) -> bool:
    return f"{function.__module__}.".startswith(_NOT_OURS)


def _names(code: CodeType) -> Iterator[str]:
    """Yield the names that a function's code uses, and those of the functions inside it."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)
