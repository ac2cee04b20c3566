"""Response distillation (KD): make the student's class probabilities those of the teacher."""

from collections.abc import Mapping
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_kd.losses.base import (
    LOGITS,
    DistillationLoss,
    Shape,
    check_positive,
    check_same_shape,
    upcast,
)
from lightning_kd.schedules import Scalar

_STD_EPS = 1e-7


def kd_loss(
    student_logits: Tensor, teacher_logits: Tensor, *, temperature: float = 4.0, standardize: bool = False
) -> Tensor:
    r"""Divergence of the student's softened class probabilities from the teacher's (KD).

    .. math::
        L = \frac{T^2}{N} \sum_{n} \sum_{c} p^t_{nc} \log \frac{p^t_{nc}}{p^s_{nc}}, \qquad
        p = \mathrm{softmax}(z / T)

    over the :math:`N` samples, or samples times positions of a dense prediction. The factor :math:`T^2` keeps the size
    of the gradient when the temperature changes. With ``standardize`` the logits of each sample are first brought to
    mean 0 and deviation 1, :math:`z \to (z - \bar z) / (\sigma(z) + 10^{-7})` with the unbiased :math:`\sigma`,
    for both networks, so that the student need not reach the scale of the teacher's logits.

    Follows the authors' form (KL, summed over classes, averaged over the batch). Logits of a sample that are all equal
    have no deviation; they standardise to 0 and pass on the gradient of a sample of deviation 1, where the authors'
    code would multiply it by :math:`10^7`.

    Shape:
        - student_logits, teacher_logits: :math:`(B, C)`, or :math:`(B, C, H, W)` and more positions; equal shapes.
        - Output: scalar :math:`()`, >= 0.

    Args:
        student_logits: Unnormalised class scores to train.
        teacher_logits: Unnormalised class scores to imitate; no gradient reaches them.
        temperature: Softening of both distributions, > 0, no unit. 1 leaves them as they are; 2 to 8 are common.
        standardize: Bring the logits of each sample to mean 0 and deviation 1 before the temperature.

    Raises:
        ValueError: If the shapes differ or have no class axis, ``temperature`` is not positive, or a single class is
            to be standardised.

    Example:
        >>> student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[2.0, 0.0]])
        >>> kd_loss(student, teacher, temperature=2.0)  # p = (.5, .5) against (.731, .269); 4 * KL
        tensor(0.4438)
        >>> kd_loss(student, -5 * teacher, temperature=2.0, standardize=True)  # the factor 5 is lost: z = (-.707, .707)
        tensor(0.2352)

    Reference:
        Hinton, Vinyals & Dean, "Distilling the Knowledge in a Neural Network", 2015, arXiv:1503.02531.
        Sun et al., "Logit Standardization in Knowledge Distillation", CVPR 2024, arXiv:2403.01427 (``standardize``).
    """
    check_positive("kd_loss", temperature=temperature)
    _check_logits("kd_loss", student_logits, teacher_logits)
    student, teacher = upcast(student_logits), upcast(teacher_logits.detach())
    if student.numel() == 0:
        return student.sum() * 0.0
    if standardize:
        student, teacher = _standardize(student), _standardize(teacher)
    student = F.log_softmax(student / temperature, dim=1)
    teacher = F.log_softmax(teacher / temperature, dim=1)
    divergence = F.kl_div(student, teacher, reduction="sum", log_target=True)
    return divergence * (temperature**2 * student.shape[1] / student.numel())


@final
class KDLoss(DistillationLoss):
    """Make the student's class probabilities those of the teacher (response distillation, KD).

    Args:
        temperature: Softening of both distributions, > 0, no unit. 1 leaves them as they are; 2 to 8 are common.
        standardize: Bring the logits of each sample to mean 0 and deviation 1 before the temperature.
        weight: Factor of this part in the total loss, >= 0. Published recipes use 0.9 beside a task weight of 0.1.

    Raises:
        ValueError: If ``temperature`` is not positive, or the weight is negative or not finite.
    """

    needs_teacher_logits = True

    def __init__(self, temperature: Scalar = 4.0, standardize: bool = False, *, weight: Scalar = 1.0) -> None:
        super().__init__(weight=weight)
        check_positive("KDLoss", temperature=temperature)
        self.temperature = temperature
        self.standardize = standardize

    def build(self, student_shapes: Mapping[str, Shape], teacher_shapes: Mapping[str, Shape]) -> None:
        """Check that both networks score the same classes.

        Args:
            student_shapes: Holds the shape of the student's logits.
            teacher_shapes: Holds the shape of the teacher's logits.

        Raises:
            ValueError: If the class counts or the positions differ, or a single class is to be standardised.
        """
        student, teacher = student_shapes.get(LOGITS), teacher_shapes.get(LOGITS)
        if student is None or teacher is None:
            return
        _check_class_axis("KDLoss", student, teacher)
        if student[1:] != teacher[1:]:
            raise ValueError(
                f"KDLoss: {_class_counts(student, teacher)}, logits of shape student {student} and teacher {teacher}; "
                f"{_REMEDY}."
            )
        if self.standardize:
            _check_several_classes("KDLoss", student)

    def forward(self, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        """Compute the unweighted loss of a batch of logits, see ``kd_loss``."""
        return kd_loss(
            student_logits, teacher_logits, temperature=self.now(self.temperature), standardize=self.standardize
        )


_REMEDY = "give both networks heads for the same classes and positions, or distil a layer with HintLoss"


def _standardize(logits: Tensor) -> Tensor:
    _check_several_classes("kd_loss", tuple(logits.shape))
    variance, mean = torch.var_mean(logits, dim=1, correction=1, keepdim=True)
    deviation = torch.where(variance > 0, variance, 1.0).sqrt()  # no root, and no infinite slope, at a variance of 0
    return (logits - mean) / (_STD_EPS + deviation)


def _check_logits(function: str, student: Tensor, teacher: Tensor) -> None:
    _check_class_axis(function, tuple(student.shape), tuple(teacher.shape))
    if student.shape != teacher.shape:
        counts = _class_counts(tuple(student.shape), tuple(teacher.shape))
        check_same_shape(function, student, teacher, f"{counts}: {_REMEDY}")


def _check_class_axis(function: str, student: Shape, teacher: Shape) -> None:
    if {len(student), len(teacher)} & {0, 1, 3}:
        raise ValueError(
            f"{function}: expected logits (B, C) or (B, C, H, W), classes on axis 1, got student {student} and teacher "
            f"{teacher}; turn token logits (B, N, C) into (B * N, C)."
        )


def _check_several_classes(function: str, shape: Shape) -> None:
    if shape[1] < 2:
        raise ValueError(
            f"{function}: standardize needs at least 2 classes, got logits of shape {shape}: a single score has no "
            "deviation; use standardize=False."
        )


def _class_counts(student: Shape, teacher: Shape) -> str:
    return f"the teacher has {teacher[1]} classes, the student {student[1]}"
