"""Three numbers that tell one sample's inputs from another's, whatever its batch, padding, device and format."""

import math
import zlib
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_kd.capture.columns import is_label, is_row_number
from lightning_kd.capture.decoder_mask import IGNORED

MASK = "attention_mask"
NUMBERS = 3
_TOLERANCES = {torch.float16: 2e-3, torch.bfloat16: 1e-2}
_TOLERANCE = 2e-5
_LARGE = 1e15
TINY = 1e-12
"""By how much numbers of an input that is 0 may differ."""


def contents(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Tensor]:
    r"""Return for each input the norm and two projections of each sample.

    .. math::
        \left( \lVert x_i \rVert, \; \sum_j u_j x_{ij}, \; \sum_j v_j x_{ij} \right)

    with numbers :math:`u, v` between -1 and 1 that are drawn once and for all. Whole numbers, such as token ids, are
    replaced by drawn numbers first, so that each change of an id counts the same. Where there is an attention mask of
    two axes, tokens that it hides do not count, and the others count by their place among those that it shows. So do
    labels of tokens, of which -100 hides one: a decoder's inputs may be made of them.

    Shape:
        - an input: :math:`(B, *)`, or a list of :math:`B` tensors, words or numbers.
        - what it returns: :math:`(B, 3)`, float32.

    Args:
        args: The positional inputs, which are called by their numbers.
        kwargs: The named inputs; rows are left out.

    Example:
        >>> picture = torch.arange(6.0).view(1, 2, 3)
        >>> mirrored = contents((picture.flip(-1),), {})["0"]
        >>> torch.allclose(contents((picture,), {})["0"], mirrored)
        False
    """
    return {name: _numbers_of(name, value, kwargs) for name, value in inputs_of(args, kwargs).items()}


def inputs_of(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the inputs that hold something for each sample, by name: tensors, and lists of tensors, words or numbers.

    Args:
        args: The positional inputs, which are called by their numbers.
        kwargs: The named inputs; rows and the attention mask are left out.

    Example:
        >>> sorted(inputs_of((torch.zeros(2), {"kind": ["a", "b"]}), {"index": torch.arange(2)}))
        ['0', '1.kind']
    """
    found: dict[str, Any] = {}
    for name, value in ({str(i): value for i, value in enumerate(args)} | dict(kwargs)).items():
        if name == MASK or is_row_number(name, value):
            continue
        if isinstance(value, Mapping):
            found |= {f"{name}.{key}": one for key, one in inputs_of((), value).items()}
        elif (isinstance(value, Tensor) and value.ndim) or is_list(value):
            found[name] = value
        elif isinstance(value, tuple):
            found |= {f"{name}.{key}": one for key, one in inputs_of(value, {}).items()}
    rows = next((len(value) for value in found.values() if isinstance(value, Tensor)), None)
    # words and numbers of another length are options, such as the size of an image
    return {n: v for n, v in found.items() if rows in (None, len(v)) or isinstance(v, Tensor) or _is_of_tensors(v)}


def tokens_that_count(name: str, value: Tensor, kwargs: Mapping[str, Any]) -> Tensor | None:
    """Return which tokens of an input count, ``None`` if all do.

    Args:
        name: The input's name.
        value: The input.
        kwargs: All named inputs, among them perhaps the attention mask.
    """
    if is_label(name) and value.ndim == 2 and not value.is_floating_point():
        return value != IGNORED
    mask = kwargs.get(MASK)
    hides = isinstance(mask, Tensor) and mask.ndim == 2 and value.ndim >= 2 and value.shape[:2] == mask.shape
    return mask.bool() if isinstance(mask, Tensor) and hides else None


def is_list(value: object) -> bool:
    """Whether a value is a list of words or numbers, or of tensors, as detectors take their images."""
    if not isinstance(value, list | tuple) or not value:
        return False
    of_words = all(isinstance(one, str) for one in value) or all(isinstance(one, int | float) for one in value)
    return of_words or _is_of_tensors(value)


def _is_of_tensors(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(one, Tensor) for one in value)


def _numbers_of(name: str, value: Any, kwargs: Mapping[str, Any]) -> Tensor:
    if isinstance(value, Tensor):
        return _of(value, tokens_that_count(name, value, kwargs))
    if isinstance(value[0], Tensor):
        return torch.cat([_of(one.unsqueeze(0), None) for one in value])
    if isinstance(value[0], str):
        value = [zlib.crc32(one.encode()) for one in value]
    return _of(torch.tensor(value), None)


def same(found: Any, stored: Any, *dtypes: torch.dtype) -> Any:
    """Return for each sample whether two triples of numbers are of the same input; tensors or arrays of NumPy.

    Args:
        found: The numbers of the input at hand (B, 3).
        stored: Those that were stored, of the same shape, or (K, B, 3) of several candidates.
        dtypes: The formats of both inputs; numbers of 16 bits may differ more.
    """
    return (abs(found - stored) <= stored[..., :1] * tolerance(*dtypes) + TINY).all(-1)


def tolerance(*dtypes: torch.dtype) -> float:
    """Return by how much numbers of the same input may differ by their rounding, relative to the norm."""
    return max([_TOLERANCE, *(_TOLERANCES.get(dtype, 0.0) for dtype in dtypes)])


def _of(value: Tensor, mask: Tensor | None) -> Tensor:
    with torch.no_grad():
        if torch.is_autocast_enabled(value.device.type):  # which would compute the products in 16 bits
            with torch.autocast(value.device.type, enabled=False):
                return _finite(value, mask)
        return _finite(value, mask)


def _finite(value: Tensor, mask: Tensor | None) -> Tensor:
    found = _projected(value, mask)
    if math.isfinite(float(found.sum())):
        return found
    # missing values, or numbers whose squares are too large
    return _projected(value.nan_to_num(1.0, _LARGE, -_LARGE).clamp(-_LARGE, _LARGE), mask)


def _projected(value: Tensor, mask: Tensor | None) -> Tensor:
    rows = len(value)
    if value.is_floating_point() or value.dtype in (torch.uint8, torch.bool):
        numbers = value.detach().float()
    elif value.is_complex():
        numbers = torch.view_as_real(value.detach()).float()
    else:
        numbers = _drawn(value.detach())
    if mask is not None:
        numbers, places = numbers.reshape(rows, mask.shape[1], -1), (mask.cumsum(1) - 1).clamp_min(0)
        drawn = drawn_weights(numbers[0].numel(), value.device).view(mask.shape[1], -1, 2)[places]
        numbers = numbers * mask.unsqueeze(-1)
        return _numbers(numbers.flatten(1), (numbers.unsqueeze(-1) * drawn).flatten(1, 2).sum(1))
    numbers = numbers.reshape(rows, -1) if numbers.numel() else numbers.new_zeros(rows, 1)
    drawn = drawn_weights(numbers.shape[1], value.device)
    if numbers.device.type == "cpu":
        return _numbers(numbers, numbers @ drawn)
    # matrix products of accelerators may round to fewer digits
    return _numbers(numbers, torch.stack([(numbers * drawn[:, i]).sum(1) for i in range(2)], 1))


def _numbers(flat: Tensor, projections: Tensor) -> Tensor:
    return torch.cat([torch.linalg.vector_norm(flat, dim=1, keepdim=True), projections], 1)


@lru_cache(maxsize=64)
def drawn_weights(size: int, device: torch.device) -> Tensor:
    """Return the drawn numbers (size, 2) of the first positions; those of a position do not depend on the size."""
    with np.errstate(over="ignore"):
        mixed = _mixed(np.arange(2 * size, dtype=np.uint32) + np.uint32(0x9E3779B9))
    drawn = torch.from_numpy(mixed.astype(np.float64) / 2.0**31 - 1.0).float().view(size, 2)
    return drawn.to(device)


def _mixed(numbers: Any) -> Any:
    """Return other whole numbers of 32 bits, which look drawn: the finalizer of MurmurHash3."""
    numbers = numbers ^ (numbers >> np.uint32(16))
    numbers = numbers * np.uint32(0x85EBCA6B)
    numbers = numbers ^ (numbers >> np.uint32(13))
    numbers = numbers * np.uint32(0xC2B2AE35)
    return numbers ^ (numbers >> np.uint32(16))


def _drawn(ids: Tensor) -> Tensor:
    """Return a drawn number between -1 and 1 for each whole number."""
    low = 0xFFFFFFFF
    mixed = ids.long() & low
    mixed = ((mixed ^ (mixed >> 16)) * 0x85EBCA6B) & low
    mixed = ((mixed ^ (mixed >> 13)) * 0xC2B2AE35) & low
    mixed = mixed ^ (mixed >> 16)
    return (mixed.double() / 2.0**31 - 1.0).float()
