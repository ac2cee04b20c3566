"""What the axes of a layer's value mean: found by two calls with other batch sizes, and by the modules that made it.

The axis that grows with the batch is the batch's. The module calls tell which holds the channels, see ``Followed``.
"""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_kd.capture.activation_input import block_of
from lightning_kd.capture.followed import Followed, following
from lightning_kd.capture.places import Places
from lightning_kd.capture.private import tree_map_only
from lightning_kd.capture.seen import batch_of, patch_grid, seen_in


@dataclass(slots=True)
class Axes:
    """What is known of the axes of a layer's value.

    Args:
        shape: Shape of the value at the first call.
        batch: The batch axis, ``None`` if it cannot be known.
        channels: The channel axis, ``None`` if it cannot be known.
        windows: How many windows of a sample stand one after another along the batch axis; 0 if their order is unknown.
        prefix: How many class and register tokens stand before the tokens of an image.
        grid: Height and width of the patches of the image, ``None`` if the network sees no image or the count does
            not tell.
        places: The positions of the first map that the values come from, ``None`` if they cannot be followed.
    """

    shape: tuple[int, ...]
    batch: int | None = 0
    channels: int | None = None
    windows: int = 1
    prefix: int = 0
    grid: tuple[int, int] | None = None
    places: Places | None = None


def one_more_sample(args: tuple[Any, ...], kwargs: Mapping[str, Any], size: int, axis: int) -> tuple[Any, Any]:
    """Return the inputs of a call with its first sample appended.

    Args:
        args: The positional inputs.
        kwargs: The named inputs.
        size: How many samples there are; tensors and lists of another length are left as they are.
        axis: The batch axis of the inputs.
    """

    def append(value: Tensor) -> Tensor:
        if value.ndim <= axis or value.shape[axis] != size:
            return value
        return torch.cat([value, value.narrow(axis, 0, 1)], dim=axis)

    def more(value: Any) -> Any:
        if isinstance(value, list) and len(value) == size:  # of samples, as detectors take their images
            return [*value, value[0]]
        return tree_map_only(Tensor, append, value)

    return tuple(map(more, args)), {name: more(value) for name, value in kwargs.items()}


def find_axes(
    layers: Iterable[str], followed: Followed, more: Followed | None, size: int, image: tuple[int, int] | None
) -> dict[str, Axes]:
    """Find what the axes of the values of layers mean.

    Args:
        layers: Dotted names of the layers.
        followed: The module calls of the network's first call.
        more: Those of a call with the first sample appended, ``None`` if there was no such call.
        size: Number of samples of the first call.
        image: Height and width of the images that the network was called with, if they were such.
    """
    found = {}
    for layer in layers:
        value = followed.value_of(layer)
        if value is None:
            continue
        axes = Axes(tuple(value.shape))
        _find_batch(axes, value, None if more is None else more.value_of(layer), size)
        axes.places = followed.places.places(value)
        if axes.batch is not None:
            axes.channels = followed.channel_axis(layer, value, axes.batch)
            if image is not None and value.ndim == 3 and axes.channels == 2 and axes.windows == 1:
                prefix, grid = patch_grid(value.shape[1 - axes.batch], image)
                if grid is not None and followed.has_map(grid):  # patches come out of a convolution
                    axes.prefix, axes.grid = prefix, grid
        found[layer] = axes
    return found


def axes_in_call(
    network: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], target: Any, layers: Iterable[str], runs: Followed
) -> dict[str, Axes]:
    """Find what the axes of a network's layers mean, by calling the network with one sample more.

    Args:
        network: The network, or a teacher, who calls it and has it as ``layered``.
        args: What it was called with.
        kwargs: What it was called with by name.
        target: The target of the batch, which tells the number of samples.
        layers: Names of the layers; outputs and attention are left out.
        runs: The module calls of the first call.
    """
    blocks = {layer: block for layer in layers if (block := block_of(layer)) is not None}
    samples = batch_of(args, kwargs, target)
    if not blocks or samples is None:
        return {}
    size, axis = samples
    more_args, more_kwargs = one_more_sample(args, kwargs, size, axis)
    more = None
    # a network of one graph cannot be called so; then the layout may be asked for
    with suppress(Exception), following(getattr(network, "layered", network)) as second:
        network(*more_args, **more_kwargs)
        more = second
    seen = seen_in(args, kwargs, target)
    found = find_axes(set(blocks.values()), runs, more, size, None if seen is None else seen.image)
    return {layer: found[block] for layer, block in blocks.items() if block in found}


def _find_batch(axes: Axes, value: Tensor, more: Tensor | None, size: int) -> None:
    axes.batch = None
    if more is None or more.ndim != value.ndim:  # then one axis alone must have as many as there are samples
        fitting = [i for i, length in enumerate(value.shape) if length == size]
        axes.batch = fitting[0] if len(fitting) == 1 else None
        return
    growing = [i for i, (one, two) in enumerate(zip(value.shape, more.shape, strict=True)) if one != two]
    if len(growing) != 1:
        return
    (axis,) = growing
    windows, rest = divmod(value.shape[axis], size)
    if rest or more.shape[axis] != windows * (size + 1):
        return
    axes.batch = axis
    if windows > 1 and value.is_meta:  # no values tell in which order the windows stand
        axes.windows = 0
    elif windows > 1:
        # the appended sample is the first one again: its windows must be the last rows
        by_sample = axis == 0 and _close(more[:windows], more[-windows:])
        axes.windows = windows if by_sample else 0


def _close(one: Tensor, other: Tensor) -> bool:
    scale = one.abs().max().clamp_min(1e-6)
    return bool((one - other).abs().max() <= 1e-3 * scale)
