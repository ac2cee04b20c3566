"""What the axes of a layer's value mean: found by two calls with other batch sizes, and by the modules that made it.

The axis that grows with the batch is the batch's. Which axis holds the channels follows from modules: those that
returned the value, those inside the layer, and those that take the value next. Convolutions and their norms have the
channels on axis 1, linear layers, embeddings and attention on the last.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lightning_kd.capture.networks import first_tensor, original
from lightning_kd.capture.origins import TURNED, Origins
from lightning_kd.capture.places import Places, PlacesMode
from lightning_kd.capture.private import BatchNorm, Conv, InstanceNorm, Pool, tree_leaves, tree_map_only

_ELEMENTWISE = (
    nn.ReLU,
    nn.ReLU6,
    nn.LeakyReLU,
    nn.ELU,
    nn.SELU,
    nn.CELU,
    nn.GELU,
    nn.SiLU,
    nn.Mish,
    nn.Hardswish,
    nn.Hardsigmoid,
    nn.Hardtanh,
    nn.Sigmoid,
    nn.Tanh,
    nn.Softplus,
    nn.Identity,
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.Dropout3d,
    nn.AlphaDropout,
)
_FIRST = (Conv, BatchNorm, InstanceNorm, Pool, nn.GroupNorm, nn.PReLU, nn.Upsample, nn.PixelShuffle)
_LAST = (nn.Linear, nn.LayerNorm, nn.RMSNorm, nn.Embedding, nn.MultiheadAttention, nn.RNNBase)


@dataclass(frozen=True, slots=True)
class Run:
    """One call of a module: its name, the module, what it was given, what it returned, and where the channels are.

    The axis is ``None`` if the kind of the module does not tell, and ``TURNED`` if it would tell the wrong one.
    """

    name: str
    module: nn.Module
    given: Tensor | None
    value: Tensor
    axis: int | None


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


@dataclass(slots=True)
class Followed:
    """All module calls of one call of a network, in order."""

    runs: list[Run] = field(default_factory=list)
    origins: Origins = field(default_factory=Origins)
    places: PlacesMode = field(init=False)

    def __post_init__(self) -> None:
        self.places = PlacesMode(self.origins)

    def channel_axis(self, layer: str, value: Tensor, batch: int) -> int | None:
        """Return the axis of a layer's value that holds the channels, ``None`` if no module tells.

        Args:
            layer: Dotted name of the layer.
            value: What it returned.
            batch: The batch axis of the value.
        """
        if value.ndim <= 2:
            return 1 - batch if value.ndim == 2 else None
        places = self.places.places(value)
        axis = (
            self._of_makers(value)
            or self.origins.axis(value)
            or (None if places is None else places.channel_axis(batch))
            or self._of_takers(value, batch)
            or self._of_inner(layer, value, batch)
            or self._of_earlier(layer, value, batch)
        )
        return None if axis == TURNED else axis

    def known_axis(self, value: Tensor) -> int | None:
        """Return the axis of the channels of a value that a module returned, or operations that were followed."""
        axis = self._of_makers(value) or self.origins.axis(value)
        return None if axis == TURNED else axis

    def _of_makers(self, value: Tensor) -> int | None:
        """Ask the modules that returned this very tensor; an activation is passed through to what it was given."""
        for _ in range(16):
            made = [run for run in self.runs if run.value is value]
            for run in made:
                if run.axis is not None:
                    return run.axis
            passed = [run.given for run in made if isinstance(run.module, _ELEMENTWISE) and run.given is not None]
            if not passed or passed[0].shape != value.shape:
                return None
            value = passed[0]
        return None

    def _of_inner(self, layer: str, value: Tensor, batch: int) -> int | None:
        """Ask the modules inside the layer, the last first: as many channels are found again.

        A layer that permutes what a module inside it returned has the channels on the axis of that size. If several
        axes have that size, and the operations in between were not followed, nothing tells which.
        """
        inside = [run for run in self.runs if run.name.startswith(f"{layer}.")]
        for run in reversed(inside):
            axis = run.axis
            if axis is None or axis == TURNED:
                continue
            size = run.value.shape[axis]
            fitting = [i for i, length in enumerate(value.shape) if i != batch and length == size]
            if len(fitting) == 1:
                return fitting[0]
            if fitting:
                return None
            others = zip(run.value.shape, value.shape, strict=False)
            if run.value.ndim == value.ndim and [i for i, (one, two) in enumerate(others) if one != two] == [axis]:
                return axis  # channels of several modules, one after another
        return None

    def _of_earlier(self, layer: str, value: Tensor, batch: int) -> int | None:
        """Ask the last module before that returned a value of this shape, such as a branch that was added.

        If another axis is as long as the channels, the shape does not tell that nothing was permuted in between.
        """
        place = next((i for i, run in enumerate(self.runs) if run.name == layer), len(self.runs))
        for run in reversed(self.runs[:place]):
            axis = run.axis if run.value.shape == value.shape else None
            if axis is not None and axis != TURNED:
                lengths = [length for i, length in enumerate(value.shape) if i != batch]
                return _same_in_memory(run.value, axis, value) if lengths.count(value.shape[axis]) == 1 else None
        return None

    def _of_takers(self, value: Tensor, batch: int) -> int | None:
        """Ask the modules that take this very tensor next; an activation is passed through to what it returned."""
        for run in self.runs:
            if run.given is not value:
                continue
            axis = _taken_axis(run.module, value)
            if axis is None and isinstance(run.module, _ELEMENTWISE) and run.value is not value:
                axis = self._of_takers(run.value, batch) if run.value.shape == value.shape else None
            if axis is not None and axis != batch:
                return axis
        return None

    def has_map(self, size: tuple[int, int]) -> bool:
        """Whether a module returned a map of a height and width."""
        values = (run.value for run in self.runs if run.value.ndim == 4)
        return any(size in (tuple(value.shape[2:]), tuple(value.shape[1:3])) for value in values)

    def value_of(self, layer: str) -> Tensor | None:
        """Return what a layer returned, ``None`` if it returned no tensor or did not run."""
        return next((run.value for run in self.runs if run.name == layer), None)


def natural_axis(module: nn.Module, value: Tensor) -> int | None:
    """Return the axis of a module's output that holds the channels, ``None`` if its kind does not tell."""
    # Norms of timm, torchvision and transformers are known by their names and the size of their weights. They come
    # first: timm's and torchvision's LayerNorm2d derives from nn.LayerNorm, and has the channels on axis 1.
    name, weight = type(module).__name__, getattr(module, "weight", None)
    size = weight.numel() if isinstance(weight, Tensor) and weight.ndim == 1 else 0
    if name.endswith(("Norm2d", "NormAct2d")) and value.ndim >= 3 and value.shape[1] == size:
        return 1
    if name.endswith(("LayerNorm", "RMSNorm")) and value.shape[-1] == size:
        return value.ndim - 1
    if isinstance(module, _FIRST):
        return 1 if value.ndim >= 3 else None
    if isinstance(module, _LAST):
        return value.ndim - 1
    order = str(getattr(module, "output_fmt", None)).rpartition(".")[2]  # of timm's stages and patch embeddings
    # a patch embedding says NCHW of tokens too, which it has flattened and turned
    return order.index("C") if "C" in order and len(order) == value.ndim else None


def _axis_of(module: nn.Module, given: Tensor | None, value: Tensor, origins: Origins) -> int | None:
    """Return the axis of a module's output that holds the channels, by its kind and by what it was given.

    Linear layers, norms, and convolutions of one position act on one axis and leave the others as they are. If what
    they were given has its channels on another axis, they are there still: the module mixes tokens, or time.
    """
    natural = natural_axis(module, value)
    known = origins.axis(given)
    if natural is None or given is None or known is None or value.ndim != given.ndim:
        return natural
    if known == TURNED:
        return TURNED if isinstance(module, nn.Linear) else natural
    pointwise = isinstance(module, Conv) and all(size == 1 for size in module.kernel_size)
    acts_on_one = pointwise or isinstance(module, (nn.Linear, nn.LayerNorm, nn.RMSNorm, BatchNorm))
    return known if acts_on_one and value.shape[known] == given.shape[known] else natural


@contextmanager
def following(network: nn.Module) -> Iterator[Followed]:
    """Note every call of a module inside the block.

    Args:
        network: The network; a compiled one is followed through to the original.
    """
    followed = Followed()

    def hook(name: str) -> Any:
        def note(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            value = first_tensor(output)
            if value is None:
                return
            given = first_tensor(args)
            axis = _axis_of(module, given, value, followed.origins)
            followed.origins.note(value, axis)
            followed.runs.append(Run(name, module, given, value, axis))

        return note

    named = original(network).named_modules(remove_duplicate=False)  # a layer may be known by two names
    handles = [part.register_forward_hook(hook(name)) for name, part in named if name]
    try:
        with followed.places, followed.origins:
            yield followed
    finally:
        for handle in handles:
            handle.remove()


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


def find_axes(
    layers: Iterable[str], followed: Followed, more: Followed | None, size: int, image: Tensor | None
) -> dict[str, Axes]:
    """Find what the axes of the values of layers mean.

    Args:
        layers: Dotted names of the layers.
        followed: The module calls of the network's first call.
        more: Those of a call with the first sample appended, ``None`` if there was no such call.
        size: Number of samples of the first call.
        image: The image that the network was called with, if it was one.
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
        layers: Dotted names of the layers.
        runs: The module calls of the first call.
    """
    layers, samples = set(layers), batch_of(args, kwargs, target)
    if not layers or samples is None:
        return {}
    size, axis = samples
    more_args, more_kwargs = one_more_sample(args, kwargs, size, axis)
    more = None
    # a network of one graph cannot be called so; then the layout may be asked for
    with suppress(Exception), following(getattr(network, "layered", network)) as second:
        network(*more_args, **more_kwargs)
        more = second
    first = next((one for one in (*args, *kwargs.values()) if isinstance(one, Tensor)), None)
    return find_axes(layers, runs, more, size, first if first is not None and first.ndim == 4 and axis == 0 else None)


def patch_grid(tokens: int, image: Tensor) -> tuple[int, tuple[int, int] | None]:
    """Return how many tokens stand before those of the patches, and height and width of the grid of patches.

    A patch is a square of pixels, so the grid has the shape of the image. The fewest tokens before it are taken for
    which that holds: none, a class token, a class and a distillation token, or these with register tokens.

    Example:
        >>> patch_grid(197, torch.zeros(1, 3, 224, 224))
        (1, (14, 14))
    """
    height, width = image.shape[2:]
    for prefix in range(17):
        area, patches = height * width, tokens - prefix
        if patches < 1 or area % patches:
            continue
        side = math.isqrt(area // patches)
        if side and side * side == area // patches and height % side == 0 == width % side:
            return prefix, (height // side, width // side)
    return 0, None


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


def _same_in_memory(known: Tensor, axis: int, value: Tensor) -> int:
    """Return the axis of a value that has the place in memory that an axis of another value has."""
    return _stride_order(value)[_stride_order(known).index(axis)]


def _stride_order(value: Tensor) -> list[int]:
    """Return the axes from the largest stride to the smallest."""
    return sorted(range(value.ndim), key=lambda axis: (-value.stride()[axis], axis))


def _taken_axis(module: nn.Module, value: Tensor) -> int | None:
    """Return the axis on which a module expects the channels, if the value has as many of them there."""
    expected: Sequence[tuple[type | tuple[type, ...], str, int]] = (
        (Conv, "in_channels", 1),
        (BatchNorm, "num_features", 1),
        (nn.GroupNorm, "num_channels", 1),
        (nn.Linear, "in_features", value.ndim - 1),
        (nn.RNNBase, "input_size", value.ndim - 1),
        (nn.MultiheadAttention, "embed_dim", value.ndim - 1),
    )
    for kind, attribute, axis in expected:
        if isinstance(module, kind) and value.shape[axis] == getattr(module, attribute):
            return axis
    normalized = getattr(module, "normalized_shape", None)
    if isinstance(module, nn.LayerNorm) and normalized and tuple(normalized) == tuple(value.shape[-1:]):
        return value.ndim - 1
    return None
