"""The module calls of one call of a network, and on which axis each has its channels.

Which axis holds the channels follows from modules: those that returned the value, those inside the layer, and those
that take the value next. Convolutions and their norms have the channels on axis 1, linear layers, embeddings and
attention on the last.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from lightning_kd.capture.networks import first_tensor, original
from lightning_kd.capture.origins import TURNED, Origins
from lightning_kd.capture.places import PlacesMode
from lightning_kd.capture.private import BatchNorm, Conv, DisableTorchFunction, InstanceNorm, Pool

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
            with DisableTorchFunction():
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
