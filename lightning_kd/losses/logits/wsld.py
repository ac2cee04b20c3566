"""Weighted soft labels (WSLD): soft targets count the more, the less the student knows beside the teacher."""

from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_kd.capture.heads import Head
from lightning_kd.losses.checks import check_positive
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
from lightning_kd.losses.tensors import upcast
from lightning_kd.schedules import Scalar, check_whole

_EPS = 1e-7


def wsld_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    target: Tensor,
    *,
    temperature: float = 2.0,
    ignore_index: int = IGNORE_INDEX,
) -> Tensor:
    r"""Cross entropy with the teacher's softened probabilities, each sample by how much it has yet to teach (WSLD).

    .. math::
        L = -\frac{T^2}{N} \sum_n w_n \sum_c p^t_{nc} \log p^s_{nc}, \qquad
        w = 1 - \exp\Big( -\frac{\log q^s_y}{\log q^t_y} \Big)

    with :math:`p = \mathrm{softmax}(z / T)` and, of the target class :math:`y`, :math:`q = \mathrm{softmax}(z)`. A
    sample whose target the student knows better than the teacher does counts for little, one that it knows much worse
    counts fully. No gradient reaches the weights. The mean is over the :math:`N` samples, or samples times positions
    of a dense prediction, that have a label.

    Follows the authors' code, which adds :math:`10^{-7}` to :math:`-\log q^t_y`; the paper does not. Both are cross
    entropies, not divergences, so the loss of two equal networks is not 0. That code also puts the teacher into
    training mode, where its BatchNorm sees the batch; here the teacher stays in evaluation mode.

    Shape:
        - student_logits, teacher_logits: :math:`(B, C)`, or :math:`(B, C, H, W)` and more positions; equal shapes.
        - target: :math:`(B)`, or :math:`(B, H, W)`: the logits' shape without the classes.
        - Output: scalar :math:`()`, >= 0; 0 if no sample has a label.

    Args:
        student_logits: Unnormalised class scores to train.
        teacher_logits: Unnormalised class scores to imitate; no gradient reaches them.
        target: Class ids.
        temperature: Softening of both distributions, > 0, no unit. Published recipes use 2, on CIFAR-100 4.
        ignore_index: Class id of samples without a label, which are left out.

    Raises:
        ValueError: If the shapes do not match, the target holds no class ids, or ``temperature`` is not positive.

    Example:
        >>> student = torch.tensor([[0.0, 0.0]])  # q = 1/2, and a cross entropy of ln 2 with whatever the teacher says
        >>> teacher = torch.tensor([[1.0986, 0.0]])  # (3/4, 1/4)
        >>> wsld_loss(student, teacher, torch.tensor([0]), temperature=1.0)  # weight 1 - exp(-ln 2 / ln 4/3)
        tensor(0.6309)
        >>> wsld_loss(student, teacher, torch.tensor([1]), temperature=1.0)  # weight 1 - exp(-1/2)
        tensor(0.2727)

    Reference:
        Zhou et al., "Rethinking Soft Labels for Knowledge Distillation: A Bias-Variance Tradeoff Perspective", ICLR
        2021, arXiv:2102.00650.
    """
    check_positive("wsld_loss", temperature=temperature)
    check_logits("wsld_loss", student_logits, teacher_logits)
    check_several("wsld_loss", student_logits)
    ids, labelled = class_ids("wsld_loss", student_logits, target, ignore_index)
    student, teacher = upcast(student_logits), upcast(teacher_logits.detach())
    soft = (teacher / temperature).softmax(dim=1) * F.log_softmax(student / temperature, dim=1)
    entropies = -soft.sum(dim=1, keepdim=True)
    return mean_over_labelled(_shares(student.detach(), teacher, ids) * entropies, labelled) * temperature**2


@final
class WSLDLoss(LogitLoss):
    """Learn the soft labels of what the student does not know yet (weighted soft label distillation, WSLD).

    Best for classifiers whose labels are good: a sample whose label the student already predicts better than the
    teacher counts for little. It needs labels, and samples without one are left out, with what the teacher says of
    them. Beside the temperature there is nothing to tune.

    Args:
        temperature: Softening of both distributions, > 0, no unit. Published recipes use 2, on CIFAR-100 4.
        ignore_index: Class id of samples without a label, which are left out.
        head: Which of several outputs of both networks to compare, by name or number; by default the one that the task
            reads.
        teacher_head: Which of several outputs of the teacher, if it has another name there.
        weight: Factor of this part in the total loss, >= 0. Published recipes use 2.5, on CIFAR-100 2.25, beside a task
            weight of 1.

    Raises:
        ValueError: If ``temperature`` is not positive, or the weight is negative or not finite.
    """

    output_kind = "classes"
    needs_target = True
    takes_one_logit = False
    means_over_labels = True

    def __init__(
        self,
        temperature: Scalar = 2.0,
        ignore_index: int = IGNORE_INDEX,
        *,
        head: Head = None,
        teacher_head: Head = None,
        weight: Scalar = 1.0,
    ) -> None:
        super().__init__(head=head, teacher_head=teacher_head, weight=weight)
        check_positive("WSLDLoss", temperature=temperature)
        check_whole("WSLDLoss", "ignore_index", ignore_index)
        self.temperature = temperature
        self.ignore_index = ignore_index

    def forward(self, student_logits: Tensor, teacher_logits: Tensor, target: Tensor) -> Tensor:
        """Compute the unweighted loss of a batch of logits, see ``wsld_loss``."""
        target = with_one_mark(target, self.ignore_index, self.task_ignore_index)
        mean = wsld_loss(
            student_logits,
            teacher_logits,
            target,
            temperature=self.now(self.temperature),
            ignore_index=self.ignore_index,
        )
        return self.of_all(mean, count_labels(target, (self.ignore_index,)))


def _shares(student: Tensor, teacher: Tensor, ids: Tensor) -> Tensor:
    """Return by how much each sample or position counts, in [0, 1], axis 1 of length 1."""
    own, its = (-F.log_softmax(logits, dim=1).gather(1, ids) for logits in (student, teacher))
    return -torch.expm1(-own / (its + _EPS))
