"""Calls of a network with a few rows in another form, which tell how it reads padding and documents."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn

from lightning_kd.capture.batch import logits_of
from lightning_kd.capture.columns import is_label, makes_inputs_of, takes
from lightning_kd.capture.heads import SeveralHeadsError
from lightning_kd.capture.networks import device_of, original, undisturbed
from lightning_kd.capture.private import tree_leaves

_OFTEN, _SELDOM = 20, 50
"""Where a look at the values makes the device wait: the first so many calls are looked at, then one in so many."""


class Looks:
    """Decides whether to look at values now; on another device than the CPU a look waits for all that runs there."""

    def __init__(self) -> None:
        self._calls: Counter[object] = Counter()

    def __call__(self, tensor: Tensor, kind: object) -> bool:
        """Return whether to look at a tensor.

        Args:
            tensor: The tensor.
            kind: What kind of call it is of; of each kind the first calls are looked at.
        """
        if tensor.device.type == "cpu":
            return True
        self._calls[kind] += 1
        return self._calls[kind] <= _OFTEN or self._calls[kind] % _SELDOM == 0


@contextmanager
def probing(network: nn.Module, whole: Callable[[], AbstractContextManager[None]], *, plain: bool) -> Iterator[None]:
    """Call a network inside the block so that nothing is left of it.

    Args:
        network: The network.
        whole: Has the network compute all of its logits.
        plain: Whether to compute in the format of the weights, in which answers can be compared closely.
    """
    device = device_of(network).type
    kind = torch.get_autocast_dtype(device)
    on = torch.is_autocast_enabled(device) and not plain
    # the cache of autocast would hand weights that were cast without gradients to the step
    with undisturbed(network), whole(), torch.autocast(device, kind, enabled=on, cache_enabled=False):
        yield


def is_shared_out(network: nn.Module) -> bool:
    """Whether a call of a network needs all processes, since each holds a part of its weights."""
    marks = ("device_mesh", "ds_id", "_is_flat_param")  # FSDP2, DeepSpeed, FSDP
    return any(hasattr(parameter, mark) for parameter in network.parameters() for mark in marks)


def named_inputs(network: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the inputs of a call by name, without labels that a network can do without: they make it count a loss."""
    taken = takes(network)
    named = {**dict(zip(taken.positional, args, strict=False)), **kwargs}
    return {
        name: value
        for name, value in named.items()
        if not is_label(name) or name in taken.required or makes_inputs_of(network, name)
    }


def name_of_tokens(named: Mapping[str, Any]) -> str | None:
    """Return which input holds the tokens (B, T) or their embeddings (B, T, D), ``None`` if there is none.

    Example:
        >>> name_of_tokens({"mask": torch.ones(2, 3), "x": torch.ones(2, 3, dtype=torch.long)})
        'x'
    """
    for name, axes in (("input_ids", 2), ("inputs_embeds", 3)):
        given = named.get(name)
        if isinstance(given, Tensor) and given.ndim == axes:
            return name
    whole = (torch.int64, torch.int32)
    others = (name for name in named if not name.endswith(("mask", "position_ids", "type_ids")) and not is_label(name))
    rows = {name: named[name] for name in others if isinstance(named[name], Tensor) and named[name].ndim == 2}
    return next((name for name, value in rows.items() if value.dtype in whole), None)


def is_along(name: str, value: Any, tokens: Tensor, *, labels: bool = False) -> bool:
    """Whether an input has a value for each token.

    Args:
        name: Its name.
        value: The input.
        tokens: The tokens.
        labels: Whether labels are those of the tokens, not of a decoder.
    """
    along = isinstance(value, Tensor) and value.ndim >= 2 and value.shape[:2] == tokens.shape[:2]
    return along and not name.startswith("decoder") and (labels or not is_label(name))


def answer(network: nn.Module, named: Mapping[str, Any]) -> Tensor | None:
    """Return the logits that a network gives, else the first of what it returns; ``None`` if it returns no numbers."""
    output = original(network)(**named)
    with suppress(SeveralHeadsError):
        found = logits_of(output)
        if found is not None:
            return found
    leaves = (leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor))
    return next((leaf for leaf in leaves if leaf.ndim > 1 and leaf.is_floating_point()), None)


def is_close(one: Tensor, other: Tensor) -> bool:
    """Whether two answers are the same but for rounding."""
    if not other.numel():
        return True
    exact = one.dtype in (torch.float32, torch.float64)
    limit = (1e-4 if exact else 3e-2) * other.abs().max().clamp_min(1e-30)
    return bool(((one - other).abs() <= limit).all())
