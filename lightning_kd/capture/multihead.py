"""Attention of ``nn.MultiheadAttention``: queries, keys and values, projected anew of what the layer was called with.

The layer shows nothing of its matrix: its fast path is one kernel, and without that path torch makes the matrix inside
of one function. So what it was called with is kept. Its own projections are computed of that once the network has run,
and only those that a loss reads. The layer itself runs as it is.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from lightning_kd.capture.attention import AttentionCall, Take
from lightning_kd.capture.attention_calls import other_tokens, unread
from lightning_kd.capture.private import is_traceable_wrapper_subclass, version_of

_ARGUMENTS = ("query", "key", "value", "key_padding_mask", "need_weights", "attn_mask")
_OTHERWISE = "compare hidden states by HiddenStateLoss"


def is_multihead(module: nn.Module) -> bool:
    """Whether a module is torch's own attention layer, with the forward of torch."""
    return isinstance(module, nn.MultiheadAttention) and type(module).forward is nn.MultiheadAttention.forward


def check_adds_no_key(module: nn.Module, block: str, role: str) -> None:
    """Raise a ``ValueError`` if a layer adds a key that is no token."""
    assert isinstance(module, nn.MultiheadAttention), "the caller has looked"
    if module.bias_k is not None or module.add_zero_attn:
        raise ValueError(
            f"The {role}'s {block!r} adds a key that is no token (add_bias_kv or add_zero_attn), so its attention is "
            f"not between tokens alone; {_OTHERWISE}."
        )


def watch_multihead(module: nn.Module, take: Take) -> RemovableHandle:
    """Show a function what a layer attends to, until the handle is removed.

    A hook on the layer also makes ``nn.TransformerEncoderLayer`` call it: its fast path in eval mode leaves out the
    layers inside, and torch does not take it where hooks are. Its output then differs from that of the fast path in the
    last bits.
    """
    return module.register_forward_pre_hook(partial(_see, take), with_kwargs=True)


class Multihead:
    """What a layer attends to, projected when it is read, by the weights that it had when it was called.

    Args:
        layer: The layer.
        query: Its queries' input, which is that of its keys, in the layer's order of axes.
        value: Its values' input.
        masks: Its ``key_padding_mask`` and ``attn_mask``.
    """

    refusal = ""
    causal = False
    of_samples = True

    def __init__(self, layer: nn.MultiheadAttention, query: Tensor, value: Tensor, masks: tuple[Any, Any]) -> None:
        self.heads, self.width, self.batch_first = layer.num_heads, layer.embed_dim, layer.batch_first
        self.inputs = (query, query, value)
        self.masks = masks
        self.options: dict[str, Any] = {}
        together = layer.in_proj_weight
        each = (layer.q_proj_weight, layer.k_proj_weight, layer.v_proj_weight)
        self.weights: tuple[Tensor, ...] = each if together is None else (together,)
        self.bias: Tensor | None = layer.in_proj_bias
        self.autocast = torch.is_autocast_enabled(query.device.type), torch.get_autocast_dtype(query.device.type)
        self.versions: tuple[int, ...] = ()
        if not torch.compiler.is_compiling():  # a compiled graph counts no changes
            self.versions = self._versions_now()
        self._made: dict[int, Tensor] = {}

    @property
    def query(self) -> Tensor:
        """Queries (B, H, T, D)."""
        return self._projected(0)

    @property
    def key(self) -> Tensor:
        """Keys (B, H, T, D)."""
        return self._projected(1)

    @property
    def value(self) -> Tensor:
        """Values (B, H, T, D)."""
        return self._projected(2)

    @property
    def mask(self) -> Tensor | None:
        """What is added to the scores, ``None`` for nothing."""
        padding, mask = (None if one is None else _added(one, self.inputs[0]) for one in self.masks)
        if padding is not None:
            padding = padding[:, None, None, :]
        if mask is not None:
            mask = mask[None, None] if mask.ndim == 2 else mask.unflatten(0, (-1, self.heads))
        return mask if padding is None else padding if mask is None else padding + mask

    @property
    def changed(self) -> bool:
        """Whether what the layer was called with, or its weights, were changed in place since."""
        return bool(self.versions) and self._versions_now() != self.versions

    def _versions_now(self) -> tuple[int, ...]:
        return tuple(version_of(one) for one in (*self.inputs, *self.weights))

    def _projected(self, number: int) -> Tensor:
        made = self._made.get(number)
        if made is None:
            self._made[number] = made = self._project(number)
        return made

    def _project(self, number: int) -> Tensor:
        value, part = self.inputs[number], slice(number * self.width, (number + 1) * self.width)
        if any(is_traceable_wrapper_subclass(one) or _is_gone(one) for one in self.weights):
            raise ValueError(
                "the weights of its nn.MultiheadAttention are split over processes, or quantised, so its queries and "
                "keys are not known once it has run. Fit with a strategy that keeps weights whole, such as 'ddp', or "
                f"{_OTHERWISE}"
            )
        weight = self.weights[0][part] if len(self.weights) == 1 else self.weights[number]
        bias = None if self.bias is None else self.bias[part]
        enabled, dtype = self.autocast
        with torch.autocast(value.device.type, enabled=enabled, dtype=dtype if enabled else None):
            made = F.linear(value, weight, bias)
        heads: Tensor = made.unflatten(-1, (self.heads, -1))
        return heads.transpose(1, 2) if self.batch_first else heads.permute(1, 2, 0, 3)


def _see(take: Take, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Show what a layer is about to attend to."""
    assert isinstance(module, nn.MultiheadAttention), "find_attention has looked"
    given = {**dict(zip(_ARGUMENTS, args, strict=False)), **kwargs}
    query, key = given["query"], given["key"]
    refusal = _refusal(query, key, 1 if module.batch_first else 0)
    masks = given.get("key_padding_mask"), given.get("attn_mask")
    found: AttentionCall = unread(refusal) if refusal else Multihead(module, query, given["value"], masks)
    take(module, found)


def _refusal(query: Tensor, key: Tensor, axis: int) -> str:
    if query.is_nested:
        return (
            "it was called with a nested tensor, which nn.TransformerEncoder makes of padded tokens in eval mode. Set "
            "use_nested_tensor = False on that nn.TransformerEncoder before the fit, as enable_nested_tensor=False "
            "does when it is made"
        )
    if query.ndim != 3:
        return f"it was called with one sequence {tuple(query.shape)}. Call it with an axis of samples"
    if query is key:
        return ""
    return other_tokens(query.shape[axis], key.shape[axis]) or (
        "its queries and keys were made of two tensors, so they may be of two sequences. Call the layer with one "
        f"tensor as query and key, name a block that does, or {_OTHERWISE}"
    )


def _is_gone(weight: Tensor) -> bool:
    """Whether a weight that was there for the call alone has been freed since, as FSDP does."""
    return weight.numel() > 0 and weight.untyped_storage().size() == 0


def _added(mask: Tensor, like: Tensor) -> Tensor:
    """Return a mask of torch, True where a key does not count, as what is added to the scores."""
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros(mask.shape, dtype=like.dtype, device=mask.device).masked_fill(mask, -torch.inf)


def is_of_watch(hook: object, condition: Callable[[object], bool]) -> bool:
    """Whether a hook shows what a layer attends to to a function that satisfies a condition."""
    return isinstance(hook, partial) and hook.func is _see and condition(hook.args[0])
