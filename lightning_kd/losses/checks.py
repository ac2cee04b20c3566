"""Checks of a loss's inputs and options: each raises a ``ValueError`` that names the values and the remedy."""

import math
from collections.abc import Mapping

from torch import Tensor

from lightning_kd.losses.base import DistillationLoss, Shape
from lightning_kd.schedules import Scalar, check_number, extremes


def check_same_batch(function: str, student: Tensor, teacher: Tensor) -> None:
    """Raise a ``ValueError`` that names both shapes unless the two tensors have the same batch size."""
    if student.ndim == 0 or teacher.ndim == 0 or student.shape[0] != teacher.shape[0]:
        raise ValueError(
            f"{function}: expected the same batch size, got student {tuple(student.shape)} "
            f"and teacher {tuple(teacher.shape)}."
        )


def check_same_shape(function: str, student: Tensor, teacher: Tensor, remedy: str) -> None:
    """Raise a ``ValueError`` that names both shapes and the remedy unless the two shapes are equal."""
    if student.shape != teacher.shape:
        raise ValueError(
            f"{function}: expected equal shapes, got student {tuple(student.shape)} "
            f"and teacher {tuple(teacher.shape)}; {remedy}."
        )


def check_maps(function: str, student: Shape, teacher: Shape) -> None:
    """Raise a ``ValueError`` that names both shapes unless both are feature maps."""
    if len(student) != 4 or len(teacher) != 4:
        raise ValueError(
            f"{function}: expected feature maps (B, C, H, W), got student {student} and teacher {teacher}; "
            "name convolutional layers."
        )


def check_positive(function: str, **values: Scalar) -> None:
    """Raise a ``ValueError`` that names the first argument that is not a positive, finite number at all times."""
    for name, value in values.items():
        if type(value) is float and 0.0 < value < math.inf:  # as in most steps
            continue
        check_number(function, name, value)
        if not all(0.0 < extreme < float("inf") for extreme in extremes(value)):
            raise ValueError(f"{function}: expected {name} > 0, got {value}.")


def check_not_negative(function: str, **values: Scalar) -> None:
    """Raise a ``ValueError`` that names the first argument that is negative or not finite at some time."""
    for name, value in values.items():
        check_number(function, name, value)
        if not all(0.0 <= extreme < float("inf") for extreme in extremes(value)):
            raise ValueError(f"{function}: expected a finite {name} >= 0, got {value}.")


def check_rows(function: str, student: Tensor, teacher: Tensor) -> None:
    """Raise a ``ValueError`` that names both shapes unless both hold features of as many samples."""
    check_same_batch(function, student, teacher)
    if student.ndim < 2 or teacher.ndim < 2:
        raise ValueError(
            f"{function}: expected (B, ...) with an axis beside the batch, got student {tuple(student.shape)} and "
            f"teacher {tuple(teacher.shape)}."
        )


def check_map_layers(
    loss: DistillationLoss, student_shapes: Mapping[str, Shape], teacher_shapes: Mapping[str, Shape]
) -> None:
    """Raise a ``ValueError`` that names the layers and both shapes unless every layer of a loss returns a map."""
    name = type(loss).__name__
    for student, teacher in zip(loss.student_layers, loss.teacher_layers, strict=True):
        pair = f"{name}, student layer {student!r} and teacher layer {teacher!r}"
        check_maps(pair, student_shapes[student], teacher_shapes[teacher])
