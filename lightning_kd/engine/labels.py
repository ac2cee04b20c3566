"""Class ids as losses want them, and the words for those that are out of range."""

from collections.abc import Iterable

import torch
from torch import Tensor

from lightning_kd.losses.base import DistillationLoss

_ROUNDING = 1e-2
"""How far the sum of a distribution may be from one, as in 16 bits."""
_NARROW = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32)


def as_class_ids(target: Tensor | None, logits: Tensor | None) -> Tensor | None:
    """Return class ids of another integer type as int64, which torch's losses want; anything else as it is.

    Args:
        target: What the batch gives. It holds class ids if it has the axes of the logits without that of the classes.
        logits: The student's logits.

    Example:
        >>> as_class_ids(torch.tensor([2, 0], dtype=torch.int16), torch.zeros(2, 3))
        tensor([2, 0])
    """
    if not isinstance(target, Tensor) or target.dtype not in _NARROW or logits is None:
        return target
    return target.long() if target.shape == logits.shape[:1] + logits.shape[2:] else target


def check_classes(losses: Iterable[tuple[str, DistillationLoss]], target: object, logits: Tensor | None) -> None:
    """Refuse losses of classes for a target of several labels a sample, or of values.

    A row of zeros says nothing: it may have no label.

    Args:
        losses: The losses by name.
        target: What the batch gives; class ids and distributions over the classes suit, as of mixup.
        logits: The student's logits.

    Raises:
        ValueError: If the target is of another kind; names the part and the losses that suit. If class ids tell that
            maps have their classes on the last axis.
    """
    if not isinstance(target, Tensor) or logits is None or logits.ndim < 2:
        return
    losses = list(losses)
    _check_class_axis(losses, target, logits)
    if target.shape != logits.shape:
        return
    if logits.shape[1] < 2 or target.is_complex():
        return
    part = next((f"Part {name!r}: {type(loss).__name__}" for name, loss in losses if loss.output_kind == "classes"), "")
    if not part:
        return
    rows = target.double().movedim(1, -1).flatten(0, -2)
    strange = ((rows < 0).any(dim=1) | ((rows.sum(dim=1) - 1.0).abs() > _ROUNDING)) & (rows != 0).any(dim=1)
    if strange.any():
        shown = ", ".join(f"{value:g}" for value in rows[strange][0, :6].tolist())
        raise ValueError(
            f"{part} compares classes that exclude one another, but a row of the target, of shape "
            f"{tuple(target.shape)}, is [{shown}], as of several labels or of values. Use MultiLabelKDLoss for labels, "
            "RegressionKDLoss for values."
        )


def _check_class_axis(losses: Iterable[tuple[str, DistillationLoss]], target: Tensor, logits: Tensor) -> None:
    """Refuse losses that read the classes on axis 1 of maps that have them on the last axis, as class ids tell."""
    if logits.ndim < 4 or target.is_floating_point() or target.shape != logits.shape[:-1]:
        return
    part = next((name for name, loss in losses if loss.output_kind == "classes" and loss.needs_teacher_logits), None)
    if part is not None and target.shape != logits.shape[:1] + logits.shape[2:]:
        raise ValueError(
            f"Part {part!r} reads the classes on axis 1, but by a target of shape {tuple(target.shape)} the logits "
            f"{tuple(logits.shape)} have them on the last axis. Override logits_of(output) to return "
            "output.movedim(-1, 1)."
        )


def say_of_labels(error: Exception, part: str, target: object, logits: Tensor | None) -> None:
    """Say which class ids are out of range if that is why a loss has failed; torch tells an index only.

    Called where the failure is caught, since a context manager would cost each part of each step something.

    Args:
        error: What the loss has raised.
        part: Which part of the loss is computed.
        target: The target that it reads.
        logits: The student's logits.

    Raises:
        ValueError: If class ids are out of range.
    """
    told = str(error)
    if not isinstance(target, Tensor) or logits is None or logits.ndim < 2 or target.is_floating_point():
        return
    classes = logits.shape[1]
    remedy = (
        f"Give ids from 0 to {classes - 1}, or -100 for samples without a label, or build the networks for more "
        "classes."
    )
    if "device-side assert" in told:  # after which nothing can be read from the device
        raise RuntimeError(
            f"{part} failed on the device, mostly because a class id is out of range: {told.splitlines()[0]} "
            f"The logits have {classes} classes. {remedy}"
        ) from error
    if "out of bounds" not in told:
        return
    ids = target.unique().tolist()
    wrong = [i for i in ids if i != -100 and not 0 <= i < classes]
    if wrong:
        raise ValueError(
            f"{part} reads class ids, and the batch holds {', '.join(map(str, wrong[:5]))}, but the logits "
            f"have {classes} classes. {remedy}"
        ) from error
