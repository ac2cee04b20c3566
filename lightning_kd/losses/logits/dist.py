"""Distillation from a stronger teacher (DIST): probabilities need to rise and fall together, not to be equal."""

from typing import final

import torch
from torch import Tensor

from lightning_kd.capture.heads import Head
from lightning_kd.losses.checks import check_not_negative, check_positive
from lightning_kd.losses.logits.base import LogitLoss, check_logits, check_several
from lightning_kd.losses.tensors import exact_if_small, upcast, wide
from lightning_kd.schedules import Scalar

_EPS = 1e-8


def dist_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    beta: float = 1.0,
    gamma: float = 1.0,
    temperature: float = 1.0,
) -> Tensor:
    r"""Lack of correlation of the student's probabilities with the teacher's, in each sample and in each class (DIST).

    .. math::
        L = T^2 \Big( \beta \big( 1 - \tfrac{1}{N} \sum_n \rho(p^s_{n \cdot}, p^t_{n \cdot}) \big)
            + \gamma \big( 1 - \tfrac{1}{C} \sum_c \rho(p^s_{\cdot c}, p^t_{\cdot c}) \big) \Big), \qquad
        p = \mathrm{softmax}(z / T)

    with Pearson's correlation :math:`\rho`: of the :math:`C` classes of a sample, and of the :math:`N` samples' (or
    samples' times positions') probabilities of a class.

    Follows torchdistill: each deviation is kept above :math:`10^{-8}`; the authors add that number to the product of
    two deviations, which takes rare classes out. Probabilities that are all equal, but for rounding, have no
    deviation: they correlate with nothing, and pass on a gradient of ordinary size.

    Shape:
        - student_logits, teacher_logits: :math:`(B, C)`, or :math:`(B, C, H, W)` and more positions; equal shapes.
        - Output: scalar :math:`()`, in :math:`[0, 2 T^2 (\beta + \gamma)]`.

    Args:
        student_logits: Unnormalised class scores to train.
        teacher_logits: Unnormalised class scores to imitate; no gradient reaches them.
        beta: Factor of the correlation within samples, >= 0.
        gamma: Factor of the correlation within classes, >= 0; it needs several samples to say anything.
        temperature: Softening of both distributions, > 0, no unit. Published recipes use 1.

    Raises:
        ValueError: If the shapes differ or have no class axis, ``temperature`` is not positive, or ``beta`` or
            ``gamma`` is negative.

    Example:
        >>> student = torch.tensor([[3.0, 2.0, 1.0], [1.0, 1.0, 2.0]]).log()  # p = (3, 2, 1) / 6 and (1, 1, 2) / 4
        >>> teacher = torch.tensor([[2.0, 3.0, 1.0], [2.0, 1.0, 1.0]]).log()
        >>> dist_loss(student, teacher, gamma=0.0)  # correlations 1/2 and -1/2
        tensor(1.)
        >>> dist_loss(student, teacher, beta=0.0, gamma=3.0)  # correlations -1, 1 and 1
        tensor(2.)

    Reference:
        Huang et al., "Knowledge Distillation from A Stronger Teacher", NeurIPS 2022, arXiv:2205.10536.
    """
    check_positive("dist_loss", temperature=temperature)
    check_not_negative("dist_loss", beta=beta, gamma=gamma)
    check_logits("dist_loss", student_logits, teacher_logits)
    check_several("dist_loss", student_logits)
    student, teacher = upcast(student_logits), upcast(teacher_logits.detach())
    if student.numel() == 0:
        return student.sum() * 0.0
    factors = beta, gamma, temperature
    return exact_if_small(
        _lack(student, teacher, *factors),
        temperature**2,
        temperature,
        lambda: _lack(wide(student), wide(teacher), *factors),
    )


@final
class DISTLoss(LogitLoss):
    """Make the student's probabilities correlate with the teacher's, over classes and over samples (DIST).

    Best for a teacher that is much stronger or was trained much harder than the student can be: only the order and
    relative distances of the probabilities count, so that the student need not match their size. Large batches help
    the part within classes. It says little to a student of two classes, whose correlations within a sample are +-1.

    Args:
        beta: Factor of the correlation within samples, >= 0.
        gamma: Factor of the correlation within classes, >= 0; it needs several samples to say anything.
        temperature: Softening of both distributions, > 0, no unit. Published recipes use 1.
        gather: Whether the loss compares the samples of all processes, and its gradient is that of one process with the
            whole batch; if not, it compares each process's own, and the gradient is the mean of the processes'.
        head: Which of several outputs of both networks to compare, by name or number; by default the one that the task
            reads.
        teacher_head: Which of several outputs of the teacher, if it has another name there.
        weight: Factor of this part in the total loss, >= 0. A published recipe for ImageNet uses 2.

    Raises:
        ValueError: If ``temperature`` is not positive, or a factor is negative or not finite.
    """

    relational = True
    takes_one_logit = False

    output_kind = "classes"

    def __init__(
        self,
        beta: Scalar = 1.0,
        gamma: Scalar = 1.0,
        temperature: Scalar = 1.0,
        *,
        gather: bool = True,
        head: Head = None,
        teacher_head: Head = None,
        weight: Scalar = 1.0,
    ) -> None:
        super().__init__(head=head, teacher_head=teacher_head, weight=weight)
        check_positive("DISTLoss", temperature=temperature)
        check_not_negative("DISTLoss", beta=beta, gamma=gamma)
        self.beta = beta
        self.gamma = gamma
        self.temperature = temperature
        self.gather = gather

    def forward(self, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        """Compute the unweighted loss of a batch of logits, see ``dist_loss``."""
        return dist_loss(
            student_logits,
            teacher_logits,
            beta=self.now(self.beta),
            gamma=self.now(self.gamma),
            temperature=self.now(self.temperature),
        )


def _lack(student: Tensor, teacher: Tensor, beta: float, gamma: float, temperature: float) -> Tensor:
    student, teacher = (_probabilities(logits, temperature) for logits in (student, teacher))
    average = 1.0 / student.shape[1]
    within_samples = _correlations(student, teacher, average, average, dim=1).mean()
    within_classes = _correlations(student, teacher, student.mean(dim=0), teacher.mean(dim=0), dim=0).mean()
    scale = temperature**2
    return scale * (beta + gamma) - scale * beta * within_samples - scale * gamma * within_classes


def _probabilities(logits: Tensor, temperature: float) -> Tensor:
    probabilities = (logits / temperature).softmax(dim=1)
    return probabilities if logits.ndim == 2 else probabilities.movedim(1, -1).flatten(0, -2)


def _correlations(
    student: Tensor, teacher: Tensor, student_mean: Tensor | float, teacher_mean: Tensor | float, dim: int
) -> Tensor:
    student, teacher = student - student_mean, teacher - teacher_mean
    lengths = _length(student, student_mean, dim) * _length(teacher, teacher_mean, dim)
    return (student * teacher).sum(dim=dim) / lengths


def _length(differences: Tensor, mean: Tensor | float, dim: int) -> Tensor:
    """Return the length of the differences from the mean, or 1 if they are no larger than rounding errors."""
    length: Tensor = torch.linalg.vector_norm(differences, dim=dim)
    rounding = mean * (8 * torch.finfo(differences.dtype).eps * differences.shape[dim] ** 0.5)
    return length.masked_fill(length <= rounding, 1.0).clamp_min(_EPS)
