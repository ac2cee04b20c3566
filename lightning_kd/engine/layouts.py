"""In which order each loss reads the axes of its layers; settled at set-up, or refused with the option to write."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor

from lightning_kd.capture.axes import Axes
from lightning_kd.capture.heads import is_output
from lightning_kd.capture.layout import View, batch_axis
from lightning_kd.engine.same_positions import check_same_positions
from lightning_kd.losses.base import DistillationLoss, Shape

Roles = Mapping[str, Mapping[str, Axes]]
Views = dict[str, dict[str, View]]
_POSSIBLE = {3: "NCL, NLC or LNC", 4: "NCHW or NHWC", 5: "NCDHW or NDHWC"}
_BY_CHANNELS = {(3, 1): "NCL", (3, 2): "NLC", (4, 1): "NCHW", (4, 3): "NHWC", (5, 1): "NCDHW", (5, 4): "NDHWC"}


def settle_views(loss: DistillationLoss, known: Roles, *, masked: bool = False, of_ids: bool = False) -> Views:
    """Return how a loss reads each of its layers.

    Args:
        loss: The loss, with its layers.
        known: What is known of the axes of the layers of each role, by name.
        masked: Whether the batches say which tokens are padding.
        of_ids: Whether these tokens are those of a text, and not patches of an image.

    Raises:
        ValueError: If the loss needs to know an axis that cannot be known, or the two layers of a pair cannot be
            compared; the message names the layer and the remedy.
    """
    names = {"student": loss.student_layers, "teacher": loss.teacher_layers}
    views: Views = {role: {} for role in names}
    if loss.reads_raw:
        return views
    for role, layers in names.items():
        for name in (one for one in layers if one in known[role]):
            view = _view(loss, role, name, known[role][name])
            of_image = view.grid is not None or (of_ids and are_patches(known[role][name]))
            views[role][name] = replace(view, text=len(view.order) == 3 and not of_image)
    if loss.pairs_layers:
        for student, teacher in zip(loss.student_layers, loss.teacher_layers, strict=True):
            if student in views["student"] and teacher in views["teacher"]:
                _fit_together(loss, (student, teacher), views, known)
                if loss.compares_positions:
                    pair = {"student": student, "teacher": teacher}
                    check_same_positions(loss, pair, views, {role: known[role][name] for role, name in pair.items()})
    elif loss.needs_maps:
        for role, of in views.items():
            views[role] = {name: _as_map(view) for name, view in of.items()}
    if masked and loss.masking == "mean":
        for of in views.values():
            of |= {name: replace(view, pooled=True) for name, view in of.items() if view.text}
    return views


def are_patches(axes: Axes) -> bool:
    """Whether the positions of a layer come from a map, as those of a tower for images beside one for text."""
    return axes.grid is not None or (axes.places is not None and len(axes.places.sizes) == 2)


def axes_of_outputs(role: str, features: Mapping[str, Tensor]) -> dict[str, Axes]:
    """Return the axes of those outputs that losses read as layers: embeddings (B, D), or maps (B, C, H, W).

    Args:
        role: Whose outputs.
        features: The values of the layers, among them outputs.

    Raises:
        ValueError: If an output has another number of axes, whose meaning cannot be known.
    """
    found = {name: tuple(value.shape) for name, value in features.items() if is_output(name)}
    for name, shape in found.items():
        if len(shape) not in (2, 4):
            raise ValueError(
                f"A loss reads the {role}'s output {name!r} of shape {shape}, which is neither embeddings (B, D) nor "
                "maps (B, C, H, W). Name the layer that returns it, student=... and teacher=..., whose axes can be "
                "found; or override logits_of(output) to return one vector for each sample."
            )
    return {name: Axes(shape, channels=1) for name, shape in found.items()}


def tokens_in(shape: Shape, view: View) -> int:
    """Return how many tokens of a sample a value of some shape holds, as it is read by a view."""
    return shape[view.order.index("L")] * view.windows


def viewed_shape(shape: Shape, view: View | None) -> Shape:
    """Return the shape of a value after it was brought to the order that a loss reads."""
    return shape if view is None else tuple(view(torch.empty(shape, device="meta")).shape)


def plain_views(views: Views) -> dict[str, dict[str, dict[str, Any]]]:
    """Return views as plain data for a checkpoint."""
    return {role: {name: asdict(view) for name, view in of.items()} for role, of in views.items()}


def views_from(plain: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> Views:
    """Return the views that :func:`plain_views` has described."""
    return {role: {name: View(**one) for name, one in of.items()} for role, of in plain.items()}


def _view(loss: DistillationLoss, role: str, name: str, axes: Axes) -> View:
    given = loss.layout if isinstance(loss.layout, str) else (loss.layout or {}).get(name)
    ndim = len(axes.shape)
    if given is not None:
        if len(given) != ndim:
            raise ValueError(
                f"{_layer(loss, role, name, axes)}: layout={given!r} names {len(given)} axes, but there are {ndim}."
            )
        windows = axes.windows if axes.batch == batch_axis(given) else 1
        patches = given in ("NLC", "LNC")
        return View(given, max(windows, 1), axes.prefix if patches else 0, axes.grid if patches else None)
    if ndim < 2:
        return View("NC")
    if axes.batch is None:
        raise ValueError(
            f"{_layer(loss, role, name, axes)}: which axis holds the samples cannot be known: none, or several, grow "
            f"with the batch.{_remedy(loss, ndim)}"
        )
    if axes.windows == 0:
        raise ValueError(
            f"{_layer(loss, role, name, axes)}: a sample stands in several rows, in an order that is not window after "
            "window of each sample. Name a layer around it, where each sample is one row."
        )
    if ndim == 2:
        if axes.batch == 1:
            raise ValueError(f"{_layer(loss, role, name, axes)}: the samples are on axis 1. Name another layer.")
        return View("NC", axes.windows)
    if axes.batch == 1 and ndim == 3 and axes.channels in (2, None):
        return View("LNC", 1, axes.prefix, axes.grid)
    if axes.batch == 0 and axes.channels is not None and (ndim, axes.channels) in _BY_CHANNELS:
        order = _BY_CHANNELS[ndim, axes.channels]
        return View(order, axes.windows, axes.prefix, axes.grid)
    if axes.batch == 0 and not loss.compares_positions and ndim in (3, 4) and axes.windows == 1:
        # such a loss flattens each sample to one vector; the order of the numbers in it makes no difference
        return View("NLC" if ndim == 3 else "NCHW")
    raise ValueError(
        f"{_layer(loss, role, name, axes)}: which axis holds the channels cannot be known.{_remedy(loss, ndim)}"
    )


def _fit_together(loss: DistillationLoss, pair: tuple[str, str], views: Views, known: Roles) -> None:
    """Bring the two layers of a pair to the same kind: tokens and a map are both read as maps."""
    student, teacher = views["student"][pair[0]], views["teacher"][pair[1]]
    sides = (("student", pair[0], student), ("teacher", pair[1], teacher))
    shapes = [known[role][name].shape for role, name, _ in sides]
    kinds = [len(view.order) for _, _, view in sides]
    words = (
        f"{type(loss).__name__}, student layer {pair[0]!r} {shapes[0]} ({student.order}) and teacher layer "
        f"{pair[1]!r} {shapes[1]} ({teacher.order})"
    )
    if loss.compares_positions:
        if max(kinds) == 5 and (
            kinds[0] != kinds[1] or loss.in_a_plane or _space(shapes[0], student) != _space(shapes[1], teacher)
        ):
            raise ValueError(
                f"{words}: volumes are compared with volumes of the same depth, height and width only, and not by a "
                "loss that looks at neighbours in a plane. Name layers of equal sizes, or use HintLoss or ATLoss."
            )
        windows = max(student.windows, teacher.windows) > 1
        if student.windows != teacher.windows or (windows and (loss.in_a_plane or not _nest(shapes, sides))):
            raise ValueError(
                f"{words}: windows are folded into the batch, so the positions of the two do not match. Name layers "
                "around the windows, where each sample is one row."
            )
    maps = loss.needs_maps or (kinds in ([3, 4], [4, 3]) and loss.compares_positions)
    both_tokens = kinds == [3, 3]
    if both_tokens and loss.compares_positions and not maps:
        counts = [viewed_shape(shape, view)[1] for shape, (_, _, view) in zip(shapes, sides, strict=True)]
        maps = counts[0] != counts[1] and student.grid is not None and teacher.grid is not None
    if not loss.compares_positions:
        # all patches and nothing else: an embedding of the sample then has its weights in the order of a map's
        for role, name, view in sides:
            if view.order == "NCL" or (view.grid is not None and view.prefix == 0):
                views[role][name] = _as_map(view)
        return
    if not maps:
        return
    flat = [view for _, _, view in sides if view.text]
    if (kinds != [3, 3] and flat and max(kinds) > 2) or (both_tokens and len(flat) == 1):
        raise ValueError(
            f"{words}: tokens can be compared with a map only if they are the patches of an image, in rows, after "
            "class and register tokens; the number of tokens does not tell so. Name layers of the same kind."
        )
    if loss.in_a_plane and any(view.order in ("NLC", "LNC") for view in flat):
        raise ValueError(
            f"{words}: the loss looks at neighbours in a plane, and these tokens are no patches of an image, in rows. "
            "Name layers that return maps, or use ATLoss or HintLoss."
        )
    for role, name, view in sides:
        views[role][name] = _as_map(view)


def _as_map(view: View) -> View:
    if len(view.order) != 3:
        return view
    return replace(view, prefix=view.prefix if view.grid else 0, as_map=True)


def _nest(shapes: list[Shape], sides: Sequence[tuple[str, str, View]]) -> bool:
    """Whether each size of one window is a multiple of the other's, so that pooling does not cross windows."""
    sizes = [_space(shape, view) for shape, (_, _, view) in zip(shapes, sides, strict=True)]
    return all(max(pair) % min(pair) == 0 for pair in zip(*sizes, strict=False))


def _space(shape: Shape, view: View) -> tuple[int, ...]:
    return tuple(size for size, axis in zip(shape, view.order, strict=True) if axis not in "NC")


def _layer(loss: DistillationLoss, role: str, name: str, axes: Axes) -> str:
    return f"{type(loss).__name__}, {role} layer {name!r} of shape {axes.shape}"


def _remedy(loss: DistillationLoss, ndim: int) -> str:
    possible = _POSSIBLE.get(ndim)
    if possible is None:
        return f" There is no layout of {ndim} axes; name another layer."
    first = possible.split(",", maxsplit=1)[0].split(" ", maxsplit=1)[0]
    return f" Say it by {type(loss).__name__}(..., layout={first!r}): one of {possible}, N the batch, C the channels."
