"""Normalized distillation (NKD): the target class as sure as the teacher is, the others graded as the teacher does."""

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
from lightning_kd.losses.tensors import upcast
from lightning_kd.schedules import Scalar, check_whole


def nkd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    target: Tensor,
    *,
    gamma: float = 1.5,
    temperature: float = 1.0,
    ignore_index: int = IGNORE_INDEX,
) -> Tensor:
    r"""Cross entropy with the teacher's probability of the target class, and with those of the others (NKD).

    .. math::
        L = -\frac{1}{N} \sum_n \Big( p^t_{ny} \log p^s_{ny}
            + \gamma\, T^2 \sum_{c \ne y} q^t_{nc} \log q^s_{nc} \Big), \qquad p = \mathrm{softmax}(z)

    where :math:`y` is the target class and :math:`q` are the probabilities of the other classes among themselves, at
    temperature :math:`T`: both networks' sum to 1, however sure a network is of the target. The temperature softens
    these alone. The mean is over the :math:`N` samples, or samples times positions of a dense prediction, that have a
    label.

    Paper and authors' code agree. Both are cross entropies, not divergences, so the loss of two equal networks is not
    0. A target that is a mixture of classes is refused here; the authors' code takes the class of its largest share.
    With two classes the second part is 0.

    Shape:
        - student_logits, teacher_logits: :math:`(B, C)`, or :math:`(B, C, H, W)` and more positions; equal shapes.
        - target: :math:`(B)`, or :math:`(B, H, W)`: the logits' shape without the classes.
        - Output: scalar :math:`()`, >= 0; 0 if no sample has a label.

    Args:
        student_logits: Unnormalised class scores to train.
        teacher_logits: Unnormalised class scores to imitate; no gradient reaches them.
        target: Class ids.
        gamma: Factor of the part about the other classes, >= 0. Published recipes use 1.5, on CIFAR-100 3.5, for
            transformers 1.
        temperature: Softening of the other classes of both, > 0, no unit. Published recipes use 1, on CIFAR-100 3.
        ignore_index: Class id of samples without a label, which are left out.

    Raises:
        ValueError: If the shapes do not match, the target holds no class ids, ``temperature`` is not positive, or
            ``gamma`` is negative.

    Example:
        >>> student = torch.tensor([[0.0, 0.0, 0.0]])
        >>> teacher = torch.tensor([[1.3863, 1.0986, 0.0]])  # weights 4, 3 and 1
        >>> target = torch.tensor([0])
        >>> nkd_loss(student, teacher, target, gamma=0.0)  # 1/2 ln 3
        tensor(0.5493)
        >>> nkd_loss(student, teacher, target, gamma=2.0)  # (3/4, 1/4) against (1/2, 1/2): .5493 + 2 ln 2
        tensor(1.9356)

    Reference:
        Yang et al., "From Knowledge Distillation to Self-Knowledge Distillation: A Unified Approach with Normalized
        Loss and Customized Soft Labels", ICCV 2023, arXiv:2303.13005.
    """
    check_positive("nkd_loss", temperature=temperature)
    check_not_negative("nkd_loss", gamma=gamma)
    check_logits("nkd_loss", student_logits, teacher_logits)
    check_several("nkd_loss", student_logits)
    ids, labelled = class_ids("nkd_loss", student_logits, target, ignore_index)
    student, teacher = upcast(student_logits), upcast(teacher_logits.detach())
    of_target = teacher.softmax(dim=1).gather(1, ids) * F.log_softmax(student, dim=1).gather(1, ids)
    others = _among_others(teacher / temperature, ids).exp() * _among_others(student / temperature, ids)
    of_others = others.sum(dim=1, keepdim=True)
    return mean_over_labelled(-of_target - gamma * temperature**2 * of_others, labelled)


@final
class NKDLoss(LogitLoss):
    """Make the student as sure of the target class as the teacher, and as graded among the others (normalized, NKD).

    Best for classifiers of many classes; it needs labels, and samples without one are left out. As in ``DKDLoss``
    the classes beside the target count as much where the teacher is certain; its part about the target is a cross
    entropy at temperature 1, weighted by how sure the teacher is. ``gamma`` matters most. With two classes only the
    target's part is left.

    Args:
        gamma: Factor of the part about the other classes, >= 0. Published recipes use 1.5, on CIFAR-100 3.5, for
            transformers 1.
        temperature: Softening of the other classes of both, > 0, no unit. Published recipes use 1, on CIFAR-100 3.
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
        gamma: Scalar = 1.5,
        temperature: Scalar = 1.0,
        ignore_index: int = IGNORE_INDEX,
        *,
        head: Head = None,
        teacher_head: Head = None,
        weight: Scalar = 1.0,
    ) -> None:
        super().__init__(head=head, teacher_head=teacher_head, weight=weight)
        check_positive("NKDLoss", temperature=temperature)
        check_whole("NKDLoss", "ignore_index", ignore_index)
        check_not_negative("NKDLoss", gamma=gamma)
        self.gamma = gamma
        self.temperature = temperature
        self.ignore_index = ignore_index

    def forward(self, student_logits: Tensor, teacher_logits: Tensor, target: Tensor) -> Tensor:
        """Compute the unweighted loss of a batch of logits, see ``nkd_loss``."""
        target = with_one_mark(target, self.ignore_index, self.task_ignore_index)
        mean = nkd_loss(
            student_logits,
            teacher_logits,
            target,
            gamma=self.now(self.gamma),
            temperature=self.now(self.temperature),
            ignore_index=self.ignore_index,
        )
        return self.of_all(mean, count_labels(target, (self.ignore_index,)))


def _among_others(logits: Tensor, ids: Tensor) -> Tensor:
    """Return the log-probabilities of the other classes among themselves.

    At the target stands a very large negative number: an infinite one, times its probability of 0, would be NaN.
    """
    return F.log_softmax(logits.scatter(1, ids, torch.finfo(logits.dtype).min / 2), dim=1)
