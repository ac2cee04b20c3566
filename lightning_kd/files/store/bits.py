"""Whole numbers in as many bits as the largest needs, such as token ids."""

import numpy as np
import torch
from torch import Tensor


def bits_of(count: int) -> int:
    """Return how many bits the numbers below ``count`` need.

    Example:
        >>> bits_of(32_000), bits_of(2), bits_of(1)
        (15, 1, 1)
    """
    return max(1, (count - 1).bit_length())


def packed(numbers: Tensor, bits: int) -> Tensor:
    """Return the numbers of each row (N, K) in bits (N, bytes), uint8.

    Example:
        >>> packed(torch.tensor([[3, 1, 2]]), 2).shape
        torch.Size([1, 1])
        >>> unpacked(packed(torch.tensor([[3, 1, 2]]), 2), 3, 2)
        tensor([[3, 1, 2]])
    """
    digits = (numbers.numpy()[..., None] >> np.arange(bits)) & 1
    return torch.from_numpy(np.packbits(digits.reshape(len(numbers), -1).astype(np.uint8), axis=1))


def unpacked(stored: Tensor, count: int, bits: int) -> Tensor:
    """Return the ``count`` numbers of each row that :func:`packed` has packed."""
    digits = np.unpackbits(stored.numpy(), axis=1, count=count * bits).reshape(len(stored), count, bits)
    return torch.from_numpy(digits @ (1 << np.arange(bits, dtype=np.int64)))
