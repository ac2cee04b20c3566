"""Response distillation (KD): make the student's class probabilities those of the teacher."""

from collections.abc import Mapping
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_kd.capture.heads import Head
from lightning_kd.losses.base import OutputKind, Shape
from lightning_kd.losses.checks import check_positive
from lightning_kd.losses.logits.base import IGNORE_INDEX, LogitLoss, check_logits, with_one_mark
from lightning_kd.losses.logits.temperature import AdaptiveTemperature, yes_and_no
from lightning_kd.losses.tensors import exact_if_small, in_range, upcast, wide
from lightning_kd.schedules import Scalar

_STD_EPS = 1e-7


def kd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: float | Tensor = 4.0,
    standardize: bool = False,
    hard: bool = False,
) -> Tensor:
    r"""Divergence of the student's softened class probabilities from the teacher's (KD).

    .. math::
        L = \frac{T^2}{N} \sum_{n} \sum_{c} p^t_{nc} \log \frac{p^t_{nc}}{p^s_{nc}}, \qquad
        p = \mathrm{softmax}(z / T)

    over the :math:`N` samples, or samples times positions of a dense prediction. The factor :math:`T^2` keeps the size
    of the gradient when the temperature changes. With ``standardize`` the logits of each sample are first brought to
    mean 0 and deviation 1, :math:`z \to (z - \bar z) / (\sigma(z) + 10^{-7})` with the unbiased :math:`\sigma`,
    for both networks, so that the student need not reach the scale of the teacher's logits. If each sample has a
    temperature of its own, :math:`T^2` stands within the sum over samples.

    A single logit :math:`z` is the log odds of a yes, so the two classes are :math:`(z, 0)`:
    :math:`p = (\sigma(z / T), 1 - \sigma(z / T))`.

    With ``hard`` the teacher's decision takes the place of its probabilities: :math:`p^t` is 1 for the class of its
    highest score, the first of several, so that the loss is the cross entropy with it; DeiT's is that of :math:`T = 1`.

    Follows the authors' form (KL, summed over classes, averaged over the batch). Logits of a sample that are all equal
    have no deviation; they standardise to 0 and pass on the gradient of a sample of deviation 1, where the authors'
    code would multiply it by :math:`10^7`.

    Shape:
        - student_logits, teacher_logits: :math:`(B, C)`, or :math:`(B, C, H, W)` and more positions; equal shapes;
          :math:`C = 1` for a yes or no.
        - temperature: a number, or :math:`(B)`, or :math:`(B, H, W)` with one for each position.
        - Output: scalar :math:`()`, >= 0.

    Args:
        student_logits: Unnormalised class scores to train.
        teacher_logits: Unnormalised class scores to imitate; no gradient reaches them.
        temperature: Softening of both distributions, > 0, no unit; a number, or one for each sample. 1 leaves them as
            they are; 2 to 8 are common.
        standardize: Bring the logits of each sample to mean 0 and deviation 1 before the temperature; the deviation
            is the unbiased one (N - 1), as in the authors' code.
        hard: Compare with the class that the teacher decides for, in the place of its probabilities. The temperature
            softens the student still, so DeiT's loss needs ``temperature=1.0``.

    Raises:
        ValueError: If the shapes differ or have no class axis, ``temperature`` is a number that is not positive or a
            tensor that does not suit the logits, or a single class is to be standardised.

    Example:
        >>> student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[2.0, 0.0]])
        >>> kd_loss(student, teacher, temperature=2.0)  # p = (.5, .5) against (.731, .269); 4 * KL
        tensor(0.4438)
        >>> kd_loss(student, -5 * teacher, temperature=2.0, standardize=True)  # the factor 5 is lost: z = (-.707, .707)
        tensor(0.2352)
        >>> kd_loss(student, teacher, temperature=1.0, hard=True)  # ln 2
        tensor(0.6931)

    Reference:
        Hinton, Vinyals & Dean, "Distilling the Knowledge in a Neural Network", 2015, arXiv:1503.02531.
        Sun et al., "Logit Standardization in Knowledge Distillation", CVPR 2024, arXiv:2403.01427 (``standardize``).
        Touvron et al., "Training data-efficient image transformers", ICML 2021, arXiv:2012.12877 (``hard``).
    """
    check_logits("kd_loss", student_logits, teacher_logits)
    if isinstance(temperature, Tensor):
        temperature = _beside_classes(temperature, student_logits)
    else:
        check_positive("kd_loss", temperature=temperature)
    student, teacher = upcast(student_logits), upcast(teacher_logits.detach())
    if student.numel() == 0:
        return student.sum() * 0.0
    if student.shape[1] == 1 and not standardize:
        student, teacher = yes_and_no(student), yes_and_no(teacher)
    samples = student.numel() // student.shape[1]
    divergence = exact_if_small(
        _divergence(student, teacher, temperature, standardize, hard),
        samples,
        temperature,
        lambda: _divergence(wide(student), wide(teacher), temperature, standardize, hard),
    )
    if isinstance(temperature, Tensor):
        return (divergence * temperature.square()).mean()
    return divergence * (temperature**2 * student.shape[1] / student.numel())


@final
class KDLoss(LogitLoss):
    """Make the student's class probabilities those of the teacher (response distillation, KD).

    Best to start with: it works for any two classifiers of the same classes, and needs neither layers nor labels. It
    says nothing about the layers in between, and little if the teacher is almost certain of everything. The
    temperature matters most, and may change over the run (a schedule) or from sample to sample
    (``AdaptiveTemperature``; by ``correctness`` the loss needs the target).

    Args:
        temperature: Softening of both distributions, > 0, no unit; a number, or one for each sample. 1 leaves them as
            they are; 2 to 8 are common.
        standardize: Bring the logits of each sample to mean 0 and deviation 1 before the temperature; the deviation
            is the unbiased one (N - 1), as in the authors' code.
        hard: Compare with the class that the teacher decides for, in the place of its probabilities. The temperature
            softens the student still, so DeiT's loss needs ``temperature=1.0``.
        binary: Whether the output is a single logit, the log odds of a yes. It must be said, since a single number may
            be a regression too, which is what ``RegressionKDLoss`` is for.
        head: Which of several outputs of both networks to compare, by name or number; by default the one that the task
            reads.
        teacher_head: Which of several outputs of the teacher, if it has another name there.
        weight: Factor of this part in the total loss, >= 0. Published recipes use 0.9 beside a task weight of 0.1.

    Raises:
        ValueError: If ``temperature`` is not positive, or the weight is negative or not finite.
    """

    output_kind: OutputKind = "classes"

    def __init__(
        self,
        temperature: Scalar | AdaptiveTemperature = 4.0,
        standardize: bool = False,
        *,
        hard: bool = False,
        binary: bool = False,
        head: Head = None,
        teacher_head: Head = None,
        weight: Scalar = 1.0,
    ) -> None:
        super().__init__(head=head, teacher_head=teacher_head, weight=weight)
        if isinstance(temperature, AdaptiveTemperature):
            self.needs_target = temperature.needs_target
        else:
            check_positive("KDLoss", temperature=temperature)
        self.temperature = temperature
        self.standardize = standardize
        self.hard = hard
        self.binary = binary
        if binary:
            self.output_kind = "multilabel"  # of one label

    def build(self, student_shapes: Mapping[str, Shape], teacher_shapes: Mapping[str, Shape]) -> None:
        """Check that both networks score the same classes.

        Args:
            student_shapes: Holds the shape of the student's logits.
            teacher_shapes: Holds the shape of the teacher's logits.

        Raises:
            ValueError: If the class counts or the positions differ, a single class is to be standardised, or ``binary``
                does not suit the number of logits.
        """
        super().build(student_shapes, teacher_shapes)
        student, _ = self.logit_shapes(student_shapes, teacher_shapes)
        if student is not None:
            self._check_number_of_logits(student)
        if self.standardize and student is not None:
            _check_several_classes("KDLoss", student)

    def forward(self, student_logits: Tensor, teacher_logits: Tensor, target: Tensor | None = None) -> Tensor:
        """Compute the unweighted loss of a batch of logits, see ``kd_loss``."""
        temperature: float | Tensor
        if isinstance(self.temperature, AdaptiveTemperature):
            if target is not None:
                target = with_one_mark(target, IGNORE_INDEX, self.task_ignore_index)
            temperature = self.temperature(teacher_logits, target)
        else:
            temperature = self.now(self.temperature)
        return kd_loss(
            student_logits, teacher_logits, temperature=temperature, standardize=self.standardize, hard=self.hard
        )

    def _check_number_of_logits(self, student: Shape) -> None:
        if student[1] == 1 and not self.binary:
            raise ValueError(
                f"KDLoss: a single logit, of shape {student}, has no classes to compare. If it is the log odds of "
                "a yes (BCEWithLogitsLoss), write KDLoss(binary=True); if it is a number (a regression), use "
                "RegressionKDLoss."
            )
        if student[1] != 1 and self.binary:
            raise ValueError(
                f"KDLoss: binary=True is for a single logit, got logits of shape {student}; use MultiLabelKDLoss for "
                "several labels that do not exclude one another, or leave binary out."
            )


def _divergence(student: Tensor, teacher: Tensor, temperature: float | Tensor, standardize: bool, hard: bool) -> Tensor:
    """Return the sum over all samples, or one number for each if each has a temperature."""
    if standardize:
        student, teacher = _standardize(student), _standardize(teacher)
    student = F.log_softmax(student / temperature, dim=1)
    if hard:
        entropy = -student.gather(1, teacher.argmax(dim=1, keepdim=True))
        return entropy if isinstance(temperature, Tensor) else entropy.sum()
    teacher = F.log_softmax(teacher / temperature, dim=1)
    if isinstance(temperature, Tensor):
        return F.kl_div(student, teacher, reduction="none", log_target=True).sum(dim=1, keepdim=True)
    return F.kl_div(student, teacher, reduction="sum", log_target=True)


def _standardize(logits: Tensor) -> Tensor:
    _check_several_classes("kd_loss", tuple(logits.shape))
    logits = in_range(logits, 2, dim=(1,))
    variance, mean = torch.var_mean(logits, dim=1, correction=1, keepdim=True)
    deviation = torch.where(variance > 0, variance, 1.0).sqrt()  # no root, and no infinite slope, at a variance of 0
    return (logits - mean) / (_STD_EPS + deviation)


def _beside_classes(temperature: Tensor, logits: Tensor) -> Tensor:
    if temperature.shape not in (logits.shape[:1], logits.shape[:1] + logits.shape[2:]):
        raise ValueError(
            f"kd_loss: expected a temperature for each sample or position, got {tuple(temperature.shape)} for logits "
            f"{tuple(logits.shape)}."
        )
    return temperature.reshape(len(temperature), 1, *(temperature.shape[1:] or [1] * (logits.ndim - 2)))


def _check_several_classes(function: str, shape: Shape) -> None:
    if shape[1] < 2:
        raise ValueError(
            f"{function}: standardize needs at least 2 classes, got logits of shape {shape}: a single score has no "
            "deviation; use standardize=False."
        )
