"""The masks and labels that a network was called with, which say more surely than any column of a batch what counts."""

from dataclasses import replace
from typing import Any, TypeGuard, cast

import torch
from torch import Tensor, nn

from lightning_kd.capture.batch import Batch
from lightning_kd.capture.call import Call
from lightning_kd.capture.columns import takes

_MASK, _OF_DECODER, _LABELS = "attention_mask", "decoder_attention_mask", "labels"


def as_called(call: Call, read: Batch, network: nn.Module, axis: int = 0) -> Batch:
    """Return a batch with the masks of padding and the labels that a network was called with, in the place of its own.

    A step of the user's may find them anywhere in the batch, or make them, such as labels without the prompt. What has
    been taken for the target, and is the mask, is no target.

    Args:
        call: The recorded call.
        read: The batch taken apart.
        network: The network that was called.
        axis: The axis of the samples in its input.

    Example:
        >>> import torch
        >>> call = Call(kwargs={"attention_mask": torch.tensor([[1, 0]])})
        >>> as_called(call, Batch(), nn.Identity()).mask
        tensor([[ True, False]])
    """
    named = _named(call, network)
    of_decoder = named.get(_OF_DECODER)
    if isinstance(of_decoder, Tensor) and read.kwargs.get(_OF_DECODER) is not of_decoder:
        read = replace(read, kwargs={**read.kwargs, _OF_DECODER: of_decoder})
    labels = named.get(_LABELS)
    if labels is not read.target and _are_ids(labels, call, axis):
        read = replace(read, target=labels)
    mask = named.get(_MASK)
    if mask is read.kwargs.get(_MASK) or not _is_of_padding(mask, call, axis):
        return read
    return replace(read, mask=mask.bool(), target=None if read.target is mask else read.target)


def mask_of(call: Call, network: nn.Module) -> Tensor | None:
    """Return which tokens (B, N) are no padding, as a network was told; ``None`` if it was not.

    Args:
        call: The recorded call.
        network: The network that was called.
    """
    mask = _named(call, network).get(_MASK)
    return mask.bool() if _is_of_padding(mask, call) else None


def mask_given(call: Call, network: nn.Module) -> Tensor | None:
    """Return the ``attention_mask`` that a network was called with, of whatever shape, ``None`` without one.

    Args:
        call: The recorded call.
        network: The network that was called.
    """
    mask = _named(call, network).get(_MASK)
    return mask if isinstance(mask, Tensor) else None


def is_added(mask: Tensor) -> bool:
    """Whether a mask is one that is added to scores: 0 where a token is no padding, far below where it is."""
    return mask.is_floating_point() and bool((mask < 0).any())


def _named(call: Call, network: nn.Module) -> dict[str, Any]:
    if len(call.args) < 2:
        return call.kwargs
    return {**dict(zip(takes(network).positional, call.args, strict=False)), **call.kwargs}


def _are_ids(labels: object, call: Call, axis: int) -> TypeGuard[Tensor]:
    """Whether labels are ids of each sample, unlike probabilities or the boxes of an image."""
    is_tensor = isinstance(labels, Tensor) and labels.ndim > 0 and len(labels) == call.rows(axis)
    return is_tensor and not cast(Tensor, labels).is_floating_point() and cast(Tensor, labels).dtype != torch.bool


def _is_of_padding(mask: object, call: Call, axis: int = 0) -> TypeGuard[Tensor]:
    """Whether a mask has a value for each token of each sample, unlike one that says which token sees which."""
    fits = isinstance(mask, Tensor) and mask.ndim == 2 and mask.shape[0] == call.rows(axis)
    return fits and not is_added(cast(Tensor, mask))
