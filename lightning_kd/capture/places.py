"""From which position of an image or a sequence every number of a tensor comes, followed from operation to operation.

The first convolution tells the positions. From there a second tensor goes along, which holds the number of a position
in the place of each value. What moves numbers (reshape, permute, roll, pad, cut) moves these numbers in the same way.
So windows, and maps that were rolled, are known; and the axis along which no position changes is that of the channels.
Where an operation is not followed, nothing is known of what comes after it.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any
from weakref import ReferenceType, ref

import torch
from torch import Tensor

from lightning_kd.capture.origins import Origins
from lightning_kd.capture.private import tree_map_only
from lightning_kd.capture.watch import OperationWatch, tensors_in

_NOWHERE = -1
"""Stands for a position: the number comes from none, such as a class token or padding."""
# fmt: off
_MOVES = {
    "reshape", "view", "flatten", "unflatten", "permute", "transpose", "swapaxes", "swapdims", "movedim",
    "moveaxis", "t", "get", "squeeze", "unsqueeze", "expand", "expand_as", "repeat", "tile", "narrow", "select",
    "unbind", "chunk", "split", "tensor_split", "getitem", "roll", "flip", "rot90", "ravel", "unfold",
    "index_select", "view_as", "reshape_as",
}
# fmt: on
# fmt: off
_KEEPS = {
    "add", "radd", "iadd", "sub", "rsub", "isub", "subtract", "mul", "rmul", "imul", "multiply", "div", "rdiv",
    "truediv", "rtruediv", "itruediv", "divide", "neg", "abs", "pow", "rpow", "ipow", "square", "sqrt", "rsqrt",
    "reciprocal", "exp", "log", "log1p", "sin", "cos", "tanh", "sigmoid", "logsigmoid", "relu", "relu6",
    "leaky_relu", "prelu", "rrelu", "elu", "selu", "celu", "gelu", "silu", "mish", "softplus", "softsign",
    "hardtanh", "hardswish", "hardsigmoid", "hardshrink", "softshrink", "tanhshrink", "threshold", "erf", "clamp",
    "clip", "clamp_min", "clamp_max", "maximum", "minimum", "where", "lerp", "addcmul", "addcdiv", "masked_fill",
    "softmax", "log_softmax", "normalize", "dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout",
    "feature_alpha_dropout", "feature_dropout", "layer_norm", "rms_norm", "batch_norm", "group_norm",
    "instance_norm", "local_response_norm", "nan_to_num", "clone", "contiguous", "detach", "to", "float", "double",
    "half", "bfloat16", "type", "type_as", "cpu", "cuda", "requires_grad",
}
# fmt: on
_TURNS = ("roll", "flip", "fliplr", "flipud", "rot90")
_RESIZES = ("interpolate", "upsample", "pixel_shuffle", "pixel_unshuffle", "channel_shuffle")


@dataclass(frozen=True, slots=True)
class Places:
    """The positions that the numbers of a tensor come from.

    Args:
        numbers: The number of the position of every value, in a tensor of the same shape: rows of the batch first, then
            the positions of ``sizes`` in order; negative where a value comes from no position.
        sizes: Height and width of the map that the positions are of, or the length of a sequence.
        compared: Whether the values tell how alike positions are, as queries and keys do: then no axis holds channels.
    """

    numbers: Tensor
    sizes: tuple[int, ...]
    compared: bool = False

    def channel_axis(self, batch: int) -> int | None:
        """Return the one axis but the batch's along which no position changes, ``None`` if there are none or several.

        Args:
            batch: The batch axis.
        """
        still = [
            axis
            for axis in range(self.numbers.ndim)
            if axis != batch and self.numbers.shape[axis] > 1 and _is_still(self.numbers, axis)
        ]
        changing = self.numbers.ndim - 1 - len(still)
        known = bool((self.numbers >= 0).any())
        return still[0] if len(still) == 1 and known and changing and not self.compared else None


class PlacesMode(OperationWatch):
    """Notes inside the block from which positions the tensors come, as far as the operations are followed.

    Args:
        origins: Where the channels are; a convolution of what has them on another axis than 1 tells no positions.

    Example:
        >>> with PlacesMode(Origins()) as mode:
        ...     stem = torch.nn.functional.conv2d(torch.ones(1, 1, 2, 2), torch.ones(3, 1, 1, 1))
        ...     rolled = (stem + 1).roll(1, dims=3)
        >>> mode.places(rolled).numbers[0, 0].tolist()
        [[1, 0], [3, 2]]
    """

    def __init__(self, origins: Origins) -> None:
        super().__init__()
        self._origins = origins
        self._is_turned = False
        self._known: dict[int, tuple[ReferenceType[Tensor], Places | None]] = {}

    def see(self, func: Callable[..., Any], args: Any, kwargs: dict[str, Any], made: Any) -> None:
        """Follow the positions of what an operation was given to what it returned."""
        name = getattr(func, "__name__", "").strip("_")
        given = tensors_in((args, kwargs))
        before = [(one, self.places(one)) for one in given]
        results = [one for one in tensors_in(made) if one.ndim]
        if name in ("setitem", "copy"):
            results = given[:1]
        if not results:
            return
        seen = any(self._has_seen(one) for one in given)
        # an image that is turned before the first convolution may be turned back after the last
        self._is_turned |= name in _TURNS and not seen
        if not seen and not _is_spatial(name):
            return
        found: Sequence[Places | None] = ()
        with suppress(Exception):  # a call of another form than is followed
            found = self._follow(func, name, args, kwargs, before, results)
        for result, places in zip(results, found if len(found) == len(results) else [None] * len(results), strict=True):
            fits = places is not None and places.numbers.shape == result.shape and places.numbers.is_cpu
            if fits or seen or name.startswith("conv"):
                self._known[id(result)] = (ref(result), places if fits else None)

    def places(self, value: Tensor) -> Places | None:
        """Return the positions that a tensor comes from, ``None`` if they are not known."""
        return self._known[id(value)][1] if self._has_seen(value) else None

    def _has_seen(self, value: Tensor) -> bool:
        """Whether a tensor was made of what a convolution returned."""
        found = self._known.get(id(value))
        return found is not None and found[0]() is value

    def _follow(
        self,
        func: Callable[..., Any],
        name: str,
        args: Any,
        kwargs: dict[str, Any],
        before: list[tuple[Tensor, Places | None]],
        results: list[Tensor],
    ) -> Sequence[Places | None]:
        first, places = before[0]
        if _is_spatial(name):
            told = self._is_turned or self._has_seen(first) or self._origins.axis(first) not in (None, 1)
            if places is None and told:
                return [None] * len(results)
            return [_resized(name, places, result) for result in results]
        if name in _KEEPS:
            return [self._kept(before, result) for result in results]
        if name in _MOVES or name in ("cat", "concat", "concatenate", "stack", "pad"):
            return self._moved(func, name, args, kwargs, before)
        one: Places | None = None
        if name == "linear":
            one = None if places is None else _widened(places, -1, results[0].shape)
        elif name in ("matmul", "bmm", "mm", "rmatmul"):
            one = self._product(before[::-1] if name == "rmatmul" else before, results[0])
        elif name == "einsum" and isinstance(args[0], str):
            one = self._einsum(args[0], before, results[0])
        elif name in ("scaled_dot_product_attention", "multi_head_attention_forward"):
            # the first is the query, in whose order the answers stand
            one = None if places is None else _widened(places, -1, results[0].shape)
        return [one] + [None] * (len(results) - 1)

    def _kept(self, before: list[tuple[Tensor, Places | None]], result: Tensor) -> Places | None:
        """Return the positions of an operation that works element by element; those of a sum must be the same."""
        known = [places for given, places in before if places is not None and given.shape == result.shape]
        same = all(one is known[0] or _same(one, known[0]) for one in known)
        return known[0] if known and same else None

    def _moved(
        self,
        func: Callable[..., Any],
        name: str,
        args: Any,
        kwargs: dict[str, Any],
        before: list[tuple[Tensor, Places | None]],
    ) -> Sequence[Places | None]:
        """Do with the numbers of the positions what is done with the values."""
        known = [places for _, places in before if places is not None]
        if len({one.sizes for one in known}) != 1 or any(self._has_seen(a) and p is None for a, p in before):
            raise ValueError("of several maps, or of what is not known")

        def stand_in(value: Tensor) -> Tensor:
            places = self.places(value)
            if places is not None:
                return places.numbers
            if value.dtype in (torch.bool, torch.long, torch.int):
                return value.detach().cpu()  # an index
            return torch.full(value.shape, _NOWHERE, dtype=torch.int32, device="cpu")

        args, kwargs = tree_map_only(Tensor, stand_in, args), tree_map_only(Tensor, stand_in, kwargs)
        if name == "pad":
            mode = kwargs.get("mode", args[2] if len(args) > 2 else "constant")
            if mode != "constant":
                raise ValueError("a mirrored edge")
            args, kwargs = (args[0], kwargs.get("pad", args[1] if len(args) > 1 else None)), {"value": _NOWHERE}
        # the numbers lie in memory in another way than the values, so that only a copy can have the shape of a view
        as_copies: dict[str, Callable[..., Any]] = {"view": Tensor.reshape, "view_as": Tensor.reshape_as}
        made = as_copies.get(name, func)(*args, **kwargs)
        moved = [one for one in tensors_in(made) if one.ndim]
        return [replace(known[0], numbers=one) for one in moved]

    def _product(self, before: list[tuple[Tensor, Places | None]], result: Tensor) -> Places | None:
        """Return the positions of a product of matrices: those of the rows of the first, or else the other's columns.

        Weights have no positions. What mixes positions, such as attention, has those of its queries, the rows.
        """
        (left, of_left), (right, of_right) = before[:2]
        if of_left is not None:
            if left.shape[:-1] != result.shape[:-1] or not _is_still(of_left.numbers, -1):
                return None
            compares = not of_left.compared and of_right is not None
            if compares and of_right is not None and not _is_still(of_right.numbers, -2):
                return None
            rows = _widened(of_left, -1, result.shape)
            return None if rows is None else replace(rows, compared=compares)
        if of_right is None or self._has_seen(left) or right.ndim < 2 or not _is_still(of_right.numbers, -2):
            return None
        return _widened(of_right, -2, result.shape)

    def _einsum(self, equation: str, before: list[tuple[Tensor, Places | None]], result: Tensor) -> Places | None:
        """Return the positions of the first factor that has some, if it has them on axes that are kept."""
        factors, _, kept = equation.replace(" ", "").partition("->")
        for letters, (value, places) in zip(factors.split(","), before, strict=True):
            if places is None:
                if self._has_seen(value):
                    return None
                continue
            compares = not places.compared and sum(one is not None for _, one in before) > 1
            for other, (_, one) in zip(factors.split(","), before, strict=True):
                summed = [axis for axis, letter in enumerate(other) if letter not in kept]
                if one is None or not (compares or one is places):
                    continue
                if not all(_is_still(one.numbers, axis) for axis in summed):
                    return None
            numbers = places.numbers
            for axis in reversed(range(len(letters))):
                numbers = numbers if letters[axis] in kept else numbers.select(axis, 0)
            there = [letter for letter in letters if letter in kept]
            numbers = numbers.permute([there.index(letter) for letter in kept if letter in there])
            for axis, letter in enumerate(kept):
                if letter not in there:
                    numbers = numbers.unsqueeze(axis)
            return Places(numbers.expand(result.shape), places.sizes, compares)
        return None


def _is_spatial(name: str) -> bool:
    """Whether an operation takes (B, C, ...) and returns a map of its own size: a convolution, a pooling."""
    return name.startswith(("conv1d", "conv2d", "conv3d", "conv_transpose")) or "_pool" in name or name in _RESIZES


def _resized(name: str, places: Places | None, result: Tensor) -> Places | None:
    if places is None:
        # only a convolution tells that axis 1 holds the channels
        plain = name.startswith("conv") and result.ndim == 2 + int(name[-2:-1])
        return _new(result) if plain else None
    if places.numbers.ndim != result.ndim or result.ndim < 3:
        return None
    inner = Places(_without_edge(places.numbers), places.sizes)
    if inner.numbers.shape[2:] == result.shape[2:]:
        return _widened(inner, 1, result.shape)
    if not _is_still(inner.numbers, 1):
        return None
    one = Places(inner.numbers[:, :1], places.sizes)
    return _new(result) if _same(_by_rank(one), _new(one.numbers)) else None


def _without_edge(numbers: Tensor) -> Tensor:
    """Return a map without the padding around it."""
    for axis in range(2, numbers.ndim):
        if numbers.min() < 0:
            inside = (numbers >= 0).movedim(axis, 0).flatten(1).any(dim=1).nonzero().flatten().tolist()
            if inside:
                numbers = numbers.narrow(axis, inside[0], inside[-1] - inside[0] + 1)
    return numbers


def _new(value: Tensor) -> Places:
    """Return the positions of a map (B, C, ...) as a convolution returns it."""
    sizes = tuple(value.shape[2:])
    numbers = torch.arange(value.shape[0] * math.prod(sizes), dtype=torch.int32, device="cpu")
    return Places(numbers.reshape(value.shape[0], 1, *sizes).expand(value.shape), sizes)


def _widened(places: Places, axis: int, shape: Sequence[int]) -> Places | None:
    """Return the positions of what has another number of channels; channels that held several positions hold the first.

    So a linear layer may join the pixels of a patch. One that mixes all positions has none, nor has one that acts on
    positions while another axis holds the channels.
    """
    numbers, axis = places.numbers, axis % places.numbers.ndim
    first = numbers.narrow(axis, 0, 1)
    if not _is_still(numbers, axis):
        if any(length > 1 and _is_still(numbers, i) for i, length in enumerate(numbers.shape)):
            return None
        first = numbers.amin(axis, keepdim=True)
        joined = numbers.movedim(axis, -1).flatten(0, -2).unique(dim=0).sort(dim=1).values
        of_each = 1 + (joined[:, 1:] != joined[:, :-1]).sum(dim=1)
        samples = (joined // math.prod(places.sizes)).unique()
        if len(joined.unique()) != of_each.sum() or len(joined) <= len(samples):
            return None
    return Places(first.expand(shape), places.sizes)


def _is_still(numbers: Tensor, axis: int) -> bool:
    """Whether no position changes along an axis."""
    if numbers.stride()[axis] == 0 or numbers.shape[axis] == 1:
        return True
    return bool((numbers == numbers.narrow(axis, 0, 1)).all())


def _same(one: Places, other: Places) -> bool:
    return one.sizes == other.sizes and torch.equal(one.numbers, other.numbers)


def rows_and_columns(places: Places) -> list[Tensor]:
    """Return for every value the number of its sample, and its place on each axis of space, as ranks.

    Those from no position have a negative rank everywhere.
    """
    numbers, area = places.numbers.long(), math.prod(places.sizes)
    nowhere = numbers < 0
    coordinates = [numbers // area]
    for axis, size in enumerate(places.sizes):
        coordinates.append(numbers // math.prod(places.sizes[axis + 1 :]) % size)
    ranked = []
    for coordinate in coordinates:
        ranks = coordinate.masked_fill(nowhere, _NOWHERE).unique(return_inverse=True)[1]
        ranked.append((ranks - int(nowhere.any())).masked_fill(nowhere, _NOWHERE))
    return ranked


def _by_rank(places: Places) -> Places:
    """Return the positions as those of the smallest map that holds them all."""
    ranks = rows_and_columns(places)
    sizes = tuple(int(one.max()) + 1 for one in ranks[1:])
    numbers = ranks[0]
    for size, one in zip(sizes, ranks[1:], strict=True):
        numbers = numbers * size + one
    return Places(numbers.int(), sizes)
