"""What a network was called with: how many samples, images of which size, and patches of these."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lightning_kd.capture.private import tree_leaves


@dataclass(frozen=True, slots=True)
class Seen:
    """What a network was called with.

    Args:
        samples: How many samples.
        image: Height and width of the images, ``None`` if it was called with something else.
    """

    samples: int
    image: tuple[int, int] | None = None


def seen_in(args: tuple[Any, ...], kwargs: Mapping[str, Any], target: Any) -> Seen | None:
    """Return what a call shows of its samples, ``None`` if it was given no tensor.

    Example:
        >>> import torch
        >>> seen_in((torch.zeros(2, 3, 16, 32),), {}, None)
        Seen(samples=2, image=(16, 32))
    """
    found = batch_of(args, kwargs, target)
    if found is None:
        return None
    samples, axis = found
    first = next((one for one in (*args, *kwargs.values()) if isinstance(one, Tensor)), None)
    is_image = first is not None and first.ndim == 4 and axis == 0
    return Seen(samples, (first.shape[2], first.shape[3]) if first is not None and is_image else None)


def batch_of(args: tuple[Any, ...], kwargs: Mapping[str, Any], target: Any) -> tuple[int, int] | None:
    """Return the number of samples of a call and the batch axis of its inputs, ``None`` without a tensor.

    Sequences may have their positions first, ``(L, B, C)``; then the target alone has the length of the batch. A list
    of tensors holds a sample each.
    """
    outer = next(iter((*args, *kwargs.values())), None)
    if isinstance(outer, list) and outer and isinstance(outer[0], Tensor):
        return len(outer), 0
    first = next((one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor) and one.ndim), None)
    if first is None:
        return None
    rows = len(target) if isinstance(target, Tensor) and target.ndim else len(first)
    if first.ndim >= 2 and len(first) != rows == first.shape[1]:
        return rows, 1
    return len(first), 0


def patch_grid(tokens: int, image: tuple[int, int]) -> tuple[int, tuple[int, int] | None]:
    """Return how many tokens stand before those of the patches, and height and width of the grid of patches.

    A patch is a square of pixels, so the grid has the shape of the image. The fewest tokens before it are taken for
    which that holds: none, a class token, a class and a distillation token, or these with register tokens.

    Example:
        >>> patch_grid(197, (224, 224))
        (1, (14, 14))
    """
    height, width = image
    for prefix in range(17):
        grid = grid_of(tokens - prefix, (height, width))
        if grid is not None:
            return prefix, grid
    return 0, None


def grid_of(patches: int, image: tuple[int, int]) -> tuple[int, int] | None:
    """Return height and width of the grid of so many square patches of an image, ``None`` if there is none.

    Example:
        >>> grid_of(8, (16, 32)), grid_of(9, (16, 32))
        ((2, 4), None)
    """
    height, width = image
    if patches < 1 or height * width % patches:
        return None
    side = math.isqrt(height * width // patches)
    fits = side and side * side * patches == height * width and height % side == 0 == width % side
    return (height // side, width // side) if fits else None
