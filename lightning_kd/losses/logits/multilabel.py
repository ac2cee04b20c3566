"""Response distillation of several labels at once: make each label's probability that of the teacher."""

from typing import Literal, final

import torch.nn.functional as F
from torch import Tensor

from lightning_kd.capture.heads import Head
from lightning_kd.losses.base import Shape
from lightning_kd.losses.checks import check_positive
from lightning_kd.losses.logits.base import LogitLoss, check_logits
from lightning_kd.losses.tensors import exact_if_small, upcast, wide
from lightning_kd.schedules import Scalar

Reduction = Literal["sum", "mean"]


def multi_label_kd_loss(
    student_logits: Tensor, teacher_logits: Tensor, *, temperature: float = 1.0, reduction: Reduction = "sum"
) -> Tensor:
    r"""Divergence of the student's probability of each label from the teacher's (multi-label KD).

    .. math::
        L = \frac{T^2}{N} \sum_{n} \sum_{c} \Big( p^t_{nc} \log \frac{p^t_{nc}}{p^s_{nc}}
            + (1 - p^t_{nc}) \log \frac{1 - p^t_{nc}}{1 - p^s_{nc}} \Big), \qquad p = \sigma(z / T)

    over the :math:`N` samples, or samples times positions of a dense prediction. Each label is a yes or no of its own.
    The paper's form has no temperature, and adds up the labels; with ``reduction="mean"`` it is the mean over them.

    Shape:
        - student_logits, teacher_logits: :math:`(B, C)`, :math:`(B)` for a single label, or :math:`(B, C, H, W)` and
          more positions; equal shapes.
        - Output: scalar :math:`()`, >= 0.

    Args:
        student_logits: Log odds of each label to train.
        teacher_logits: Log odds of each label to imitate; no gradient reaches them.
        temperature: Softening of both probabilities, > 0, no unit; 1, the paper's, leaves them as they are.
        reduction: Whether the labels of a sample are added or averaged; the paper adds.

    Raises:
        ValueError: If the shapes differ, ``temperature`` is not positive, or ``reduction`` is unknown.

    Example:
        >>> import torch
        >>> student = torch.tensor([[0.0, 0.0]])
        >>> teacher = torch.tensor([[1.0986123, 0.0]])  # p = (1/2, 1/2) against (3/4, 1/2)
        >>> multi_label_kd_loss(student, teacher)
        tensor(0.1308)

    Reference:
        Yang et al., "Multi-Label Knowledge Distillation", ICCV 2023, arXiv:2308.06453 (its loss of the logits).
    """
    check_positive("multi_label_kd_loss", temperature=temperature)
    _check_reduction("multi_label_kd_loss", reduction)
    if student_logits.ndim == teacher_logits.ndim == 1:
        student_logits, teacher_logits = student_logits.unsqueeze(1), teacher_logits.unsqueeze(1)
    check_logits("multi_label_kd_loss", student_logits, teacher_logits)
    student, teacher = upcast(student_logits), upcast(teacher_logits.detach())
    if student.numel() == 0:
        return student.sum() * 0.0
    divergence = exact_if_small(
        _divergences(student, teacher, temperature),
        student.numel(),
        temperature,
        lambda: _divergences(wide(student), wide(teacher), temperature),
    )
    of_samples = divergence.sum(dim=1) if reduction == "sum" else divergence.mean(dim=1)
    return of_samples.mean() * temperature**2


@final
class MultiLabelKDLoss(LogitLoss):
    """Make the student's probability of each label that of the teacher (multi-label KD).

    For labels that do not exclude one another, each with a sigmoid of its own; ``KDLoss`` is for classes that do. It
    needs neither layers nor labels.

    Args:
        temperature: Softening of both probabilities, > 0, no unit; 1, the paper's, leaves them as they are.
        reduction: Whether the labels of a sample are added or averaged; the paper adds.
        head: Which of several outputs of both networks to compare, by name or number; by default the one that the task
            reads.
        teacher_head: Which of several outputs of the teacher, if it has another name there.
        weight: Factor of this part in the total loss, >= 0. The paper uses 10 beside a task weight of 1.

    Raises:
        ValueError: If ``temperature`` is not positive, ``reduction`` is unknown, or the weight is negative or not
            finite.
    """

    output_kind = "multilabel"

    def __init__(
        self,
        temperature: Scalar = 1.0,
        reduction: Reduction = "sum",
        *,
        head: Head = None,
        teacher_head: Head = None,
        weight: Scalar = 1.0,
    ) -> None:
        super().__init__(head=head, teacher_head=teacher_head, weight=weight)
        check_positive("MultiLabelKDLoss", temperature=temperature)
        _check_reduction("MultiLabelKDLoss", reduction)
        self.temperature = temperature
        self.reduction: Reduction = reduction

    def check_shapes(self, student: Shape, teacher: Shape) -> None:
        """Raise a ``ValueError`` unless both networks score the same labels; a single label needs no axis."""
        if not len(student) == len(teacher) == 1:
            super().check_shapes(student, teacher)

    def forward(self, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        """Compute the unweighted loss of a batch of logits, see ``multi_label_kd_loss``."""
        return multi_label_kd_loss(
            student_logits, teacher_logits, temperature=self.now(self.temperature), reduction=self.reduction
        )


def _divergences(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return what each label of each sample costs."""
    student, teacher = student / temperature, teacher / temperature
    yes = teacher.sigmoid() * (F.logsigmoid(teacher) - F.logsigmoid(student))
    no = (-teacher).sigmoid() * (F.logsigmoid(-teacher) - F.logsigmoid(-student))
    return yes + no


def _check_reduction(function: str, reduction: str) -> None:
    if reduction not in ("sum", "mean"):
        raise ValueError(f"{function}: expected reduction 'sum' or 'mean', got {reduction!r}.")
