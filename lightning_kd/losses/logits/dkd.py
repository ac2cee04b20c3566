"""Decoupled distillation (DKD): certainty of the target class and likeness of the others, each with its weight."""

from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_kd.capture.heads import Head
from lightning_kd.losses.checks import check_not_negative, check_positive
from lightning_kd.losses.logits.base import (
    IGNORE_INDEX,
    LogitLoss,
    check_logits,
    check_several,
    class_ids,
    count_labels,
    mean_over_labelled,
    with_one_mark,
)
from lightning_kd.losses.tensors import exact_if_small, upcast, wide
from lightning_kd.schedules import Scalar, check_whole


def dkd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    target: Tensor,
    *,
    alpha: float = 1.0,
    beta: float = 8.0,
    temperature: float = 4.0,
    ignore_index: int = IGNORE_INDEX,
) -> Tensor:
    r"""Divergence of the student's probability of the target class, and of those of the other classes (DKD).

    .. math::
        L = \frac{T^2}{N} \sum_n \alpha\, \mathrm{KL}(b^t_n \,\|\, b^s_n)
            + \beta\, \mathrm{KL}(\hat p^t_n \,\|\, \hat p^s_n), \qquad p = \mathrm{softmax}(z / T)

    where :math:`b = (p_y, 1 - p_y)` tells the target class :math:`y` from all others and :math:`\hat p` are the
    probabilities of the others among themselves. In plain KD the second part counts
    :math:`1 - p^t_y` times, so it is lost where the teacher is certain; here its weight is :math:`\beta` everywhere.
    The mean is over the :math:`N` samples, or samples times positions of a dense prediction, that have a label.

    Follows the authors' code. That code subtracts 1000 from the target's logit and takes the logarithm of summed
    probabilities, which is infinite for a far too certain network; here the target is left out exactly and all is done
    with logarithms, so value and gradient are finite at any gap. With two classes the second part is 0.

    Shape:
        - student_logits, teacher_logits: :math:`(B, C)`, or :math:`(B, C, H, W)` and more positions; equal shapes.
        - target: :math:`(B)`, or :math:`(B, H, W)`: the logits' shape without the classes.
        - Output: scalar :math:`()`, >= 0; 0 if no sample has a label.

    Args:
        student_logits: Unnormalised class scores to train.
        teacher_logits: Unnormalised class scores to imitate; no gradient reaches them.
        target: Class ids.
        alpha: Factor of the part about the target class, >= 0.
        beta: Factor of the part about the other classes, >= 0.
        temperature: Softening of both distributions, > 0, no unit. Published recipes use 4, on ImageNet 1.
        ignore_index: Class id of samples without a label, which are left out.

    Raises:
        ValueError: If the shapes do not match, the target holds no class ids, ``temperature`` is not positive, or
            ``alpha`` or ``beta`` is negative.

    Example:
        >>> student = torch.tensor([[0.0, 0.0, 0.0]])
        >>> teacher = torch.tensor([[1.3863, 1.0986, 0.0]])  # weights 4, 3 and 1
        >>> target = torch.tensor([0])  # (1/2, 1/2) against (1/3, 2/3), and (3/4, 1/4) against (1/2, 1/2)
        >>> dkd_loss(student, teacher, target, beta=0.0, temperature=1.0)
        tensor(0.0589)
        >>> dkd_loss(student, teacher, target, beta=2.0, temperature=1.0)  # .0589 + 2 * .1308
        tensor(0.3205)

    Reference:
        Zhao et al., "Decoupled Knowledge Distillation", CVPR 2022, arXiv:2203.08679.
    """
    check_positive("dkd_loss", temperature=temperature)
    check_not_negative("dkd_loss", alpha=alpha, beta=beta)
    check_logits("dkd_loss", student_logits, teacher_logits)
    check_several("dkd_loss", student_logits)
    ids, labelled = class_ids("dkd_loss", student_logits, target, ignore_index)
    student, teacher = upcast(student_logits), upcast(teacher_logits.detach())
    factors = alpha, beta, temperature
    divergences = _divergences(student, teacher, ids, *factors)
    divergences = exact_if_small(
        divergences,
        divergences.numel() or 1,
        temperature,
        lambda: _divergences(wide(student), wide(teacher), ids, *factors),
    )
    return mean_over_labelled(divergences, labelled) * temperature**2


@final
class DKDLoss(LogitLoss):
    """Make the student as certain of the target class and as graded among the others as the teacher (decoupled, DKD).

    Best for classifiers with many classes and a teacher that is nearly certain, from which plain KD learns little. It
    needs labels; samples without one are left out. ``beta`` matters most: the surer the teacher, the lower it should
    be. Published recipes for CIFAR-100 use 1, 2, 6 or 8, for ImageNet 0.5 with a temperature of 1.

    The loss is large at first. Published recipes let it grow over the first 20 epochs:
    ``weight=WarmUpSchedule(1.0, length=20)``.

    Args:
        alpha: Factor of the part about the target class, >= 0.
        beta: Factor of the part about the other classes, >= 0.
        temperature: Softening of both distributions, > 0, no unit. Published recipes use 4, on ImageNet 1.
        ignore_index: Class id of samples without a label, which are left out.
        head: Which of several outputs of both networks to compare, by name or number; by default the one that the task
            reads.
        teacher_head: Which of several outputs of the teacher, if it has another name there.
        weight: Factor of this part in the total loss, >= 0. Published recipes use 1 beside a task weight of 1.

    Raises:
        ValueError: If ``temperature`` is not positive, or a factor is negative or not finite.
    """

    output_kind = "classes"
    needs_target = True
    takes_one_logit = False
    means_over_labels = True

    def __init__(
        self,
        alpha: Scalar = 1.0,
        beta: Scalar = 8.0,
        temperature: Scalar = 4.0,
        ignore_index: int = IGNORE_INDEX,
        *,
        head: Head = None,
        teacher_head: Head = None,
        weight: Scalar = 1.0,
    ) -> None:
        super().__init__(head=head, teacher_head=teacher_head, weight=weight)
        check_positive("DKDLoss", temperature=temperature)
        check_whole("DKDLoss", "ignore_index", ignore_index)
        check_not_negative("DKDLoss", alpha=alpha, beta=beta)
        self.alpha = alpha
        self.beta = beta
        self.temperature = temperature
        self.ignore_index = ignore_index

    def forward(self, student_logits: Tensor, teacher_logits: Tensor, target: Tensor) -> Tensor:
        """Compute the unweighted loss of a batch of logits, see ``dkd_loss``."""
        target = with_one_mark(target, self.ignore_index, self.task_ignore_index)
        mean = dkd_loss(
            student_logits,
            teacher_logits,
            target,
            alpha=self.now(self.alpha),
            beta=self.now(self.beta),
            temperature=self.now(self.temperature),
            ignore_index=self.ignore_index,
        )
        return self.of_all(mean, count_labels(target, (self.ignore_index,)))


def _divergences(
    student: Tensor, teacher: Tensor, ids: Tensor, alpha: float, beta: float, temperature: float
) -> Tensor:
    """Return what each sample or position costs, axis 1 of length 1."""
    student_odds, student_others = _decouple(student / temperature, ids)
    teacher_odds, teacher_others = _decouple(teacher / temperature, ids)
    of_target = _binary_divergence(student_odds, teacher_odds)
    of_others = F.kl_div(student_others, teacher_others, reduction="none", log_target=True).sum(dim=1, keepdim=True)
    return alpha * of_target + beta * of_others


def _decouple(logits: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Return the log odds of the target class, and the log-probabilities of the other classes.

    The second has a very large negative number at the target. It is not infinite, because the difference of two
    networks there must be 0.
    """
    others = logits.scatter(1, ids, torch.finfo(logits.dtype).min / 2)
    highest = others.detach().amax(dim=1, keepdim=True)  # taken off first, a common offset costs no digits
    others = others - highest
    total = others.logsumexp(dim=1, keepdim=True)
    return logits.gather(1, ids) - highest - total, others - total


def _binary_divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """Divergence of two probabilities of one event, given as log odds."""
    yes = teacher.sigmoid() * (F.logsigmoid(teacher) - F.logsigmoid(student))
    no = (-teacher).sigmoid() * (F.logsigmoid(-teacher) - F.logsigmoid(-student))
    return yes + no
