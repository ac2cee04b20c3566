"""What the hooks of a ``Capture`` write in a step, and the functions that they call."""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_kd.capture.attention import AttentionCall
from lightning_kd.capture.call import Call
from lightning_kd.capture.networks import first_tensor
from lightning_kd.capture.private import version_of

Calls = Literal["one", "first", "last", "each"]
"""Which calls of the student in a step count: its only call, or the first, the last or each of several calls."""
NO_CALL = Call()
"""The current call of a store between two steps; the hooks write nothing into it."""


class EnoughError(Exception):
    """Every layer that is read has run, so the rest of the network need not."""


class Store:
    """What the hooks write to. Copying a module copies its hooks and this, so the copy does not write here."""

    def __init__(self, which: Calls) -> None:
        self.which = which
        self.active = False
        self.call = NO_CALL
        self.calls: list[Call] = []
        self.more_calls = 0
        """How many calls count beside the first."""
        self.with_grad = False
        self.copied: set[str] = set()
        self.has_compared_copies = False
        """Whether a call without versions was compared with copies of what it took and returned; one is enough."""
        self.noted: dict[str, tuple[Tensor, int]] = {}
        """What activations were given, with the versions then, until the blocks around them end."""
        self.enough = 0
        """How many layers are enough to end a call; 0 if it runs to its end."""


def put_input(store: Store, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Note what the module is called with, and begin another call where several count."""
    if not store.active:
        return
    if store.call.called:
        _begin_another(store)
    call = store.call
    if not call.called:
        call.note_inputs(args, kwargs, copied=not store.has_compared_copies)


def _begin_another(store: Store) -> None:
    """Make room for one more call, if it counts."""
    if store.with_grad and not torch.is_grad_enabled():
        return
    replaced = store.with_grad and "" in store.call.without_grad
    store.more_calls += not replaced
    if replaced or store.which == "last":
        store.calls.pop()
    elif store.which != "each":
        return
    store.call = Call()
    store.calls.append(store.call)


def put_call(store: Store, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
    """Note what the module returned, which ends the call."""
    call = store.call
    if not store.active or call.called:
        return
    call.called = True
    call.args, call.kwargs = args, kwargs
    call.note_output(output, copied=not store.has_compared_copies)
    store.has_compared_copies |= bool(call.copies or call.copies_of_outputs)
    if not torch.is_grad_enabled():
        call.without_grad = (*call.without_grad, "")


def put_layer(store: Store, layer: str, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
    """Note what a layer returned, and end the call once every layer that is read has run."""
    call = store.call
    if not store.active or call.called:
        return
    if layer in call.features:
        call.ran_twice = (*call.ran_twice, layer)
        return
    tensor = first_tensor(output)
    if tensor is None:
        call.no_tensor = (*call.no_tensor, (layer, type(output).__name__))
        return
    tensor = tensor.clone() if layer in store.copied else tensor
    keep_value(store, layer, tensor, version_of(tensor))


def keep_value(store: Store, layer: str, value: Tensor, version: int) -> None:
    """Keep a layer's value with its version, and end the call once every layer that is read has one."""
    call = store.call
    if not torch.is_grad_enabled():
        call.without_grad = (*call.without_grad, layer)
    call.features[layer] = value
    call.versions.append(version)
    if len(call.features) == store.enough:
        raise EnoughError


def put_attention(store: Store, block: str, module: nn.Module, attended: AttentionCall) -> None:
    """Note what a block attended to."""
    call = store.call
    if not store.active or call.called:
        return
    if block in call.attended:
        call.ran_twice = (*call.ran_twice, block)
        return
    if not torch.is_grad_enabled():
        call.without_grad = (*call.without_grad, block)
    call.attended[block] = attended
