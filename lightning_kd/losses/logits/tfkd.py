"""Self-distillation: what a student can learn without a teacher."""

import math
from collections.abc import Mapping
from typing import final

import torch.nn.functional as F
from torch import Tensor

from lightning_kd.losses.base import LOGITS, DistillationLoss, Shape
from lightning_kd.losses.checks import check_positive
from lightning_kd.losses.logits.base import (
    IGNORE_INDEX,
    check_class_axis,
    class_ids,
    count_labels,
    mean_over_labelled,
    with_one_mark,
)
from lightning_kd.losses.tensors import exact_if_small, upcast, wide
from lightning_kd.schedules import Scalar, check_constants, check_whole


def tfkd_loss(
    student_logits: Tensor,
    target: Tensor,
    *,
    correct_probability: float = 0.99,
    temperature: float = 20.0,
    ignore_index: int = IGNORE_INDEX,
) -> Tensor:
    r"""Divergence of the student's class probabilities from those of an imagined teacher that is right (Tf-KD).

    .. math::
        L = \frac{1}{N} \sum_n \mathrm{KL}(u_n \,\|\, p_n), \qquad u = \mathrm{softmax}(d / T), \quad
        d_y = a, \quad d_{c \ne y} = \frac{1 - a}{C - 1}, \qquad p = \mathrm{softmax}(z)

    with the target class :math:`y` and :math:`a` the probability that the teacher gives to it. The mean is over the
    :math:`N` samples, or samples times positions of a dense prediction, that have a label.

    Follows the authors' code (their regulariser without a teacher): the probabilities :math:`d`, not their logarithms,
    are divided by the temperature, so that :math:`u` is nearly uniform at the usual 20, and the student's logits are
    not divided. That code averages over classes too and multiplies by a number of its own, 100 for the hundred classes
    of most of its recipes, which gives the sum over classes that is used here.

    Shape:
        - student_logits: :math:`(B, C)`, or :math:`(B, C, H, W)` and more positions.
        - target: :math:`(B)`, or :math:`(B, H, W)`: the logits' shape without the classes.
        - Output: scalar :math:`()`, >= 0; 0 if no sample has a label.

    Args:
        student_logits: Unnormalised class scores to train.
        target: Class ids.
        correct_probability: What the imagined teacher gives to the target class before softening, in (0, 1].
        temperature: Softening of the imagined teacher, > 0, no unit. Published recipes use 20 and 40.
        ignore_index: Class id of samples without a label, which are left out.

    Raises:
        ValueError: If the target does not suit the logits or holds no class ids, there is a single class,
            ``correct_probability`` is out of its range, or ``temperature`` is not positive.

    Example:
        >>> import torch
        >>> logits, target = torch.tensor([[0.0, 0.0]]), torch.tensor([1])
        >>> tfkd_loss(logits, target, correct_probability=0.9, temperature=0.8)  # gap 1: (.269, .731) against (.5, .5)
        tensor(0.1109)
        >>> tfkd_loss(logits, target, correct_probability=0.9)  # a gap of .04, almost (.5, .5)
        tensor(0.0002)

    Reference:
        Yuan et al., "Revisiting Knowledge Distillation via Label Smoothing Regularization", CVPR 2020,
        arXiv:1909.11723.
    """
    check_positive("tfkd_loss", temperature=temperature)
    _check_probability("tfkd_loss", correct_probability)
    _check_several_classes("tfkd_loss", tuple(student_logits.shape))
    ids, labelled = class_ids("tfkd_loss", student_logits, target, ignore_index)
    student = upcast(student_logits)
    others = student.shape[1] - 1
    gap = (correct_probability - (1.0 - correct_probability) / others) / temperature
    right = -math.log1p(others * math.exp(-gap))  # the log-probability of the target class, and of another one
    wrong = right - gap
    divergence = _divergences(student, ids, right, wrong)
    divergence = exact_if_small(
        divergence, divergence.numel() or 1, temperature, lambda: _divergences(wide(student), ids, right, wrong)
    )
    return mean_over_labelled(divergence, labelled)


@final
class TfKDLoss(DistillationLoss):
    """Make the student as certain as an imagined teacher that is always right (teacher-free distillation, Tf-KD).

    Best where there is no teacher, or the student is stronger than any: a kind of label smoothing that costs nothing.
    It needs labels, samples without one are left out, and it says nothing about which classes are alike. Use it with
    the task's own loss; the weight matters most.

    Args:
        correct_probability: What the imagined teacher gives to the target class before softening, in (0, 1].
        temperature: Softening of the imagined teacher, > 0, no unit. Published recipes use 20 and 40.
        ignore_index: Class id of samples without a label, which are left out.
        weight: Factor of this part in the total loss, >= 0. Published recipes use 0.1 beside a task weight of 0.9.

    Raises:
        ValueError: If ``correct_probability`` is out of its range, ``temperature`` is not positive, or the weight is
            negative or not finite.
    """

    output_kind = "classes"
    needs_target = True
    means_over_labels = True

    def __init__(
        self,
        correct_probability: float = 0.99,
        temperature: Scalar = 20.0,
        ignore_index: int = IGNORE_INDEX,
        *,
        weight: Scalar = 1.0,
    ) -> None:
        super().__init__(weight=weight)
        check_positive("TfKDLoss", temperature=temperature)
        check_whole("TfKDLoss", "ignore_index", ignore_index)
        _check_probability("TfKDLoss", correct_probability)
        self.correct_probability = correct_probability
        self.temperature = temperature
        self.ignore_index = ignore_index

    def build(self, student_shapes: Mapping[str, Shape], teacher_shapes: Mapping[str, Shape]) -> None:
        """Check that the student scores several classes.

        Args:
            student_shapes: Holds the shape of the student's logits.
            teacher_shapes: Not used.

        Raises:
            ValueError: If the logits have no class axis or a single class.
        """
        student = student_shapes.get(LOGITS)
        if student is not None:
            _check_several_classes("TfKDLoss", student)

    def forward(self, student_logits: Tensor, target: Tensor) -> Tensor:
        """Compute the unweighted loss of a batch of logits, see ``tfkd_loss``."""
        target = with_one_mark(target, self.ignore_index, self.task_ignore_index)
        mean = tfkd_loss(
            student_logits,
            target,
            correct_probability=self.correct_probability,
            temperature=self.now(self.temperature),
            ignore_index=self.ignore_index,
        )
        return self.of_all(mean, count_labels(target, (self.ignore_index,)))


def _divergences(student: Tensor, ids: Tensor, right: float, wrong: float) -> Tensor:
    """Return what each sample or position costs, given the log-probabilities of the imagined teacher."""
    others = student.shape[1] - 1
    student = F.log_softmax(student, dim=1)
    of_target = student.gather(1, ids)
    of_others = student.sum(dim=1, keepdim=True) - of_target
    return math.exp(right) * (right - of_target) + math.exp(wrong) * (others * wrong - of_others)


def _check_probability(function: str, value: float) -> None:
    check_constants(function, correct_probability=value)
    if not 0.0 < value <= 1.0:
        raise ValueError(f"{function}: expected correct_probability in (0, 1], got {value}.")


def _check_several_classes(function: str, shape: Shape) -> None:
    check_class_axis(function, shape)
    if shape[1] < 2:
        raise ValueError(
            f"{function}: expected at least 2 classes, got logits of shape {shape}: there is no other class to which "
            "the imagined teacher could give a probability."
        )
