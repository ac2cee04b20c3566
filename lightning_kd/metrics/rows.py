"""Class scores and labels of any shape as rows: what the metrics of classes count."""

import torch
from torch import Tensor

from lightning_kd.metrics.axes import axis_of_classes, ids_of
from lightning_kd.metrics.task import holds_ids, out_of_range


def rows_of_scores(scores: Tensor, axis: int) -> Tensor:
    """Return scores as rows (M, C), in 32 bits at least.

    Args:
        scores: Class scores, such as (B, C), (B, C, H, W) or (B, L, C).
        axis: The axis of the classes.
    """
    wide = scores.detach().to(torch.promote_types(scores.dtype, torch.float32))
    return wide.movedim(axis, -1).reshape(-1, scores.shape[axis])


def labels_of_rows(name: str, scores: Tensor, target: Tensor, axis: int) -> Tensor:
    """Return one class id for each row of :func:`rows_of_scores`.

    Args:
        name: Who asks, for the error.
        scores: Class scores.
        target: Class ids, also with an axis of length 1 in the place of the classes; or a distribution for each
            position, of which the most likely class counts.
        axis: The axis of the classes.

    Raises:
        ValueError: If there is not one id, or one distribution, for each position.

    Example:
        >>> labels_of_rows("Metric", torch.zeros(2, 3), torch.tensor([[0.1, 0.2, 0.7], [1.0, 0.0, 0.0]]), axis=1)
        tensor([2, 0])
    """
    if target.shape == scores.shape and target.is_floating_point():
        return target.argmax(axis).reshape(-1)
    ids = ids_of(scores, target, axis) if holds_ids(target) else None
    if ids is None:
        raise ValueError(
            f"{name}: scores of shape {tuple(scores.shape)} need one class id for each position, got a target of shape "
            f"{tuple(target.shape)} and type {str(target.dtype).removeprefix('torch.')}."
        )
    return ids.reshape(-1).long().to(scores.device)


def class_rows(
    name: str, scores: tuple[Tensor, ...], target: Tensor | None, ignore_index: int, *, labelled_only: bool
) -> tuple[tuple[Tensor, ...], Tensor | None]:
    """Return class scores of one or several networks as rows (M, C), and the labels of these rows.

    Args:
        name: Who asks, for errors.
        scores: Class scores of equal shape. Classes are in axis 1; in axis 2 of tokens (B, L, C).
        target: One class id for each position, ``None`` without labels.
        ignore_index: The id of a position without a label.
        labelled_only: Whether samples without a label are left out. Pixels and tokens without one always are: they
            are void or padding.

    Raises:
        ValueError: If the shapes do not fit, or an id names no class.
    """
    first = scores[0]
    if any(one.shape != first.shape for one in scores) or first.ndim < 2 or not first.is_floating_point():
        shapes = " and ".join(str(tuple(one.shape)) for one in scores)
        raise ValueError(f"{name}: expected class scores (B, C, ...) of equal shape, got {shapes}.")
    if target is not None and not isinstance(target, Tensor):
        raise ValueError(f"{name}: expected class ids in a tensor, got a {type(target).__name__}.")
    axis = axis_of_classes(first, target)
    rows = tuple(rows_of_scores(one, axis) for one in scores)
    if target is None:
        return rows, None
    ids = labels_of_rows(name, first, target, axis)
    known = ids != ignore_index
    strange = out_of_range(ids, first.shape[axis]) & known
    if strange.any():
        raise ValueError(
            f"{name}: the target holds the id {int(ids[strange][0])}, but there are {first.shape[axis]} classes. Give "
            "the id of what has no label by ignore_index."
        )
    if (labelled_only or first.ndim > 2) and not known.all():
        rows, ids = tuple(one[known] for one in rows), ids[known]
    return rows, ids
