"""What the activation at the end of a block gets: a value that no module returns, such as the sum of a residual block.

It stands among the layers as ``<input of layer1.1.relu>``. One activation may serve a block several times. So what it
was given last counts when the block around it ends.
"""

import re
from collections.abc import Iterable
from typing import Any

from torch import nn

from lightning_kd.capture.attention import part_and_block
from lightning_kd.capture.heads import is_module
from lightning_kd.capture.networks import first_tensor
from lightning_kd.capture.private import version_of
from lightning_kd.capture.store import Store, keep_value

_PLACE = re.compile(r"<input of (.+)>")


def place_of_input(activation: str) -> str:
    """Return the name under which the input of an activation stands among the layers.

    Example:
        >>> place_of_input("layer1.1.relu")
        '<input of layer1.1.relu>'
    """
    return f"<input of {activation}>"


def activation_in(layer: str) -> str | None:
    """Return the activation that such a name speaks of, ``None`` for any other name of a layer."""
    found = _PLACE.fullmatch(layer)
    return None if found is None else found[1]


def block_around(activation: str) -> str:
    """Return the module whose end decides what counts: the one around an activation, or itself if there is none.

    Example:
        >>> block_around("layer1.1.relu"), block_around("relu")
        ('layer1.1', 'relu')
    """
    return activation.rpartition(".")[0] or activation


def module_of(layer: str) -> str:
    """Return the name of the module that a layer's name speaks of.

    Example:
        >>> module_of("layer1"), module_of("<input of layer1.1.relu>"), module_of("<scores of layer1>")
        ('layer1', 'layer1.1.relu', 'layer1')
    """
    found = part_and_block(layer)
    return activation_in(layer) or layer if found is None else found[1]


def block_of(layer: str) -> str | None:
    """Return the module whose value has the axes of a layer's; ``None`` for an output or an attention.

    Example:
        >>> block_of("layer1"), block_of("<input of layer1.1.relu>"), block_of("<output>")
        ('layer1', 'layer1.1', None)
    """
    activation = activation_in(layer)
    if activation is not None:
        return block_around(activation)
    return layer if is_module(layer) else None


def modules_of(network: nn.Module | None, layers: Iterable[str]) -> dict[str, nn.Module]:
    """Return the module of each layer; of the input of an activation the block around it."""
    blocks = {layer: block_of(layer) for layer in layers}
    return {} if network is None else {n: network.get_submodule(b) for n, b in blocks.items() if b is not None}


def note_input(store: Store, layer: str, module: nn.Module, args: tuple[Any, ...]) -> None:
    """Note what an activation is given, in place of what it was given before."""
    if not store.active or store.call.called:
        return
    tensor = first_tensor(args)
    if tensor is not None:
        overwritten = getattr(module, "inplace", False) or layer in store.copied
        tensor = tensor.clone() if overwritten else tensor
        store.noted[layer] = (tensor, version_of(tensor))


def put_noted(store: Store, layer: str, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
    """Take what was noted as the layer's value, now that the block around the activation has ended."""
    call = store.call
    noted = store.noted.pop(layer, None)
    if not store.active or call.called or noted is None:
        return
    if layer in call.features:
        call.ran_twice = (*call.ran_twice, layer)
        return
    keep_value(store, layer, *noted)
