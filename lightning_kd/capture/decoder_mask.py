"""Which tokens of a decoder are padding, in a network that has an encoder too; ``attention_mask`` is the encoder's."""

from collections.abc import Iterable, Mapping
from typing import Any, Literal

from torch import Tensor, nn

from lightning_kd.capture.activation_input import module_of
from lightning_kd.capture.batch import Batch
from lightning_kd.capture.columns import is_of_transformers, takes
from lightning_kd.capture.networks import original

Side = Literal["encoder", "decoder"]
"""A side of a network with encoder and decoder; any other network is its own first side."""

IGNORED = -100
"""The label of a token that is no target, with which collators pad labels."""


def decoder_mask(batch: Batch) -> Tensor | None:
    """Return which tokens (B, N) of a decoder are no padding, ``None`` if nothing tells.

    ``decoder_attention_mask`` says so, else the labels: the decoder's input at a position is the token before that
    which it is to predict, so a position is padding where its label is -100.

    Args:
        batch: The batch taken apart.
    """
    mask = batch.kwargs.get("decoder_attention_mask")
    if isinstance(mask, Tensor) and mask.ndim == 2:
        return mask.bool()
    labels = batch.target
    if not isinstance(labels, Tensor) or labels.ndim != 2 or labels.is_floating_point() or labels.is_complex():
        return None
    return labels != IGNORED


def masks_of(kwargs: Mapping[str, Any], target: Any) -> dict[Side, Tensor | None]:
    """Return which tokens are no padding, on the CPU, of a network's only or first side and of its decoder.

    Args:
        kwargs: What a network is called with by name.
        target: The target, of which a decoder's inputs are made.
    """
    mask = kwargs.get("attention_mask")
    first = mask.bool().cpu() if isinstance(mask, Tensor) and mask.ndim == 2 else None
    second = decoder_mask(Batch(kwargs=dict(kwargs), target=target))
    return {"encoder": first, "decoder": None if second is None else second.cpu()}


def is_encoder_decoder(network: nn.Module) -> bool:
    """Whether a network has an encoder and a decoder: its config says so, or it takes inputs of a decoder.

    A network of the user's own has no config that tells; ``attention_mask`` is then the encoder's, as in all others.
    """
    network = original(network)
    told = getattr(getattr(network, "config", None), "is_encoder_decoder", None)
    if isinstance(told, bool) or is_of_transformers(network):
        return bool(told)
    return any(name.startswith("decoder_input") for name in takes(network).named)


def sides_of(network: nn.Module, layers: Iterable[str]) -> set[str]:
    """Return on which sides of a network with encoder and decoder its layers are; empty for any other network.

    Args:
        network: The network.
        layers: Names of its layers, or of what is read inside of them.
    """
    if not is_encoder_decoder(network):
        return set()
    return {side for layer in layers for side in _sides_in(module_of(layer).split("."))}


def _sides_in(parts: list[str]) -> set[str]:
    """Return the sides that are named, or else meant by the outermost part that begins like one: ``dec_layers``."""
    exact: set[str] = {"encoder", "decoder"}.intersection(parts)
    begins = (part[:3].lower() for part in parts)
    meant = next((begin for begin in begins if begin in ("enc", "dec")), None)
    return exact or ({{"enc": "encoder", "dec": "decoder"}[meant]} if meant else set())
