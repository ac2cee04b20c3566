"""Which tokens of a decoder are padding, in a network that has an encoder too; ``attention_mask`` is the encoder's."""

from collections.abc import Iterable, Mapping
from typing import Any, Literal

from torch import Tensor, nn

from lightning_kd.capture.attention import part_and_block
from lightning_kd.capture.batch import Batch

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
    """Whether a model of Hugging Face has an encoder and a decoder."""
    return bool(getattr(getattr(network, "config", None), "is_encoder_decoder", False))


def sides_of(network: nn.Module, layers: Iterable[str]) -> set[str]:
    """Return on which sides of a network with encoder and decoder its layers are; empty for any other network.

    Args:
        network: The network.
        layers: Names of its layers, or of what is read inside of them.
    """
    if not is_encoder_decoder(network):
        return set()
    names = [(part_and_block(layer) or ("", layer))[1] for layer in layers]
    return {side for name in names for side in ("encoder", "decoder") if side in name.split(".")}
