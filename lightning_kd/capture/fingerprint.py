"""A number for each weight and buffer of a network, which another value gives otherwise: exact, on any device."""

import zlib
from collections.abc import Mapping

import torch
from torch import Tensor, nn

_AS_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def fingerprint(module: nn.Module) -> dict[str, int]:
    """Return a number for each parameter and buffer by name, of its bits and of where they stand.

    The bits are read as whole numbers and added up along rows and along columns, and the sums are weighed by their
    places, so that the same rows in another order have another number. Whole numbers have one sum in any order, so
    threads and devices make no difference. 25 million weights take some ten milliseconds. Tensors without readable
    memory are left out: lazy ones, sparse ones, those on the meta device.

    Example:
        >>> layer = nn.Linear(2, 1)
        >>> before = fingerprint(layer)
        >>> _ = nn.init.constant_(layer.bias, 7.0)
        >>> changed(before, fingerprint(layer))
        ['bias']
    """
    sums: dict[torch.device, dict[str, Tensor]] = {}
    with torch.no_grad():
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            try:
                whole = torch.view_as_real(tensor) if tensor.is_complex() else tensor
                bits = whole.detach().view(_AS_INTEGERS[whole.element_size()])
                value = _weighed(bits)
            except (RuntimeError, NotImplementedError, KeyError, TypeError, ValueError):  # no memory to be read
                continue
            if not value.is_meta:
                sums.setdefault(value.device, {})[name] = value
        found: dict[str, int] = {}
        for by_name in sums.values():  # one transfer from each device
            found.update(zip(by_name, torch.stack(list(by_name.values())).tolist(), strict=True))
    return found


def _weighed(bits: Tensor) -> Tensor:
    """Return one number of a tensor of whole numbers."""
    # a sum in the numbers' own format is ten times faster; it wraps around, which changes nothing
    dtype = bits.dtype if bits.element_size() >= 4 else torch.int64
    table = bits.reshape(len(bits), -1) if bits.ndim > 1 and len(bits) else bits.reshape(1, -1)
    total = torch.zeros((), dtype=torch.int64, device=bits.device)
    for axis, step in ((1, 2), (0, 4)):
        sums = table.sum(axis, dtype=dtype).long()
        total = total + (sums * (torch.arange(len(sums), device=bits.device) * step + 1)).sum()
    return total


def changed(before: Mapping[str, int], now: Mapping[str, int]) -> list[str]:
    """Return the names whose number is another one by now."""
    return [name for name, value in before.items() if now.get(name, value) != value]


def as_one_number(prints: Mapping[str, int]) -> int:
    """Return one number for the whole network."""
    return zlib.crc32(repr(sorted(prints.items())).encode())
