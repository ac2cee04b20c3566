"""Mutual learning (DML): students of one cohort teach one another while all of them learn."""

from collections.abc import Mapping, Sequence
from typing import cast, final

import torch
from torch import Tensor, nn

from lightning_kd.losses.base import LOGITS, DistillationLoss, Shape, StepTensors
from lightning_kd.losses.checks import check_positive, check_same_shape
from lightning_kd.losses.logits.base import check_class_axis, cross_entropy_of_labelled
from lightning_kd.losses.logits.kd import kd_loss
from lightning_kd.losses.tensors import upcast
from lightning_kd.schedules import Scalar


def mutual_learning_loss(logits: Sequence[Tensor], target: Tensor | None = None, *, temperature: float = 1.0) -> Tensor:
    r"""What the members of a cohort lose against one another and, for the peers, against the task (DML).

    .. math::
        L = \sum_{k=0}^{K} \frac{1}{K} \sum_{l \neq k} T^2 \, \mathrm{KL}(p_l \,\|\, p_k)
            + \sum_{k=1}^{K} \mathrm{CE}(p_k, y)

    Member 0 is the student, whose own task term belongs to the module; members 1 to K are its peers. Each member is the
    teacher of all others, and no gradient reaches a member as a teacher. The paper updates the members one after the
    other within a batch; here all learn from the same forward pass, as the common implementations do.

    Shape:
        - each of logits: :math:`(B, C)`; target: :math:`(B)`, class ids, -100 for unlabelled.
        - Output: scalar :math:`()`, >= 0.

    Args:
        logits: The members' scores, the student's first.
        target: Class ids for the peers' own task; none if there are no labels.
        temperature: Softening of all distributions, > 0, no unit. The paper uses 1.

    Raises:
        ValueError: If there are fewer than two members, shapes differ, or ``temperature`` is not positive.

    Example:
        >>> student, peer = torch.tensor([[0.0, 0.0]]), torch.tensor([[1.0986123, 0.0]])  # (1/2, 1/2), (3/4, 1/4)
        >>> mutual_learning_loss([student, peer])  # KL both ways: .1308 + .1438
        tensor(0.2747)
        >>> mutual_learning_loss([student, peer], torch.tensor([0]))  # and ln(4/3) for the peer's task
        tensor(0.5623)

    Reference:
        Zhang et al., "Deep Mutual Learning", CVPR 2018, arXiv:1706.00384.
    """
    check_positive("mutual_learning_loss", temperature=temperature)
    if len(logits) < 2:
        raise ValueError(f"mutual_learning_loss: expected the logits of two or more members, got {len(logits)}.")
    cohort = [upcast(one) for one in logits]
    for peer in cohort[1:]:
        check_same_shape("mutual_learning_loss", cohort[0], peer, "give student and peers heads for the same classes")
    terms = [
        kd_loss(learner, guide, temperature=temperature) / (len(cohort) - 1)
        for learner in cohort
        for guide in cohort
        if guide is not learner
    ]
    if target is not None:
        terms += [cross_entropy_of_labelled(peer, target) for peer in cohort[1:]]
    return torch.stack(terms).sum()


@final
class MutualLearning(DistillationLoss):
    """Train two or more students that teach one another (deep mutual learning, DML).

    The peers belong to the loss: they train beside the student, on the same batches, are saved with the losses, and are
    left behind when the student is exported. No trained teacher is needed. In the fit of another student, as in
    cross-validation, the peers begin with the weights again that they were given with.

    Best when there is no teacher and the cost of training several networks is no matter. Key parameters: the number of
    peers and their architectures. Even small peers help a large student.

    Args:
        peers: The other students, each a network on the same inputs and classes, with weights of its own.
        temperature: Softening of all distributions, > 0, no unit. The paper uses 1.
        supervised: Whether the peers learn the target as well, as in the paper; else only one another.
        weight: Factor of this part in the total loss, >= 0. The paper uses 1.

    Raises:
        ValueError: If there is no peer, one is there twice, ``temperature`` is not positive, or the weight is negative
            or not finite.
    """

    output_kind = "classes"
    networks_that_learn = ("peers",)

    def __init__(
        self, peers: Sequence[nn.Module], temperature: Scalar = 1.0, supervised: bool = True, *, weight: Scalar = 1.0
    ) -> None:
        super().__init__(weight=weight)
        check_positive("MutualLearning", temperature=temperature)
        if not peers or len({id(peer) for peer in peers}) < len(peers):
            raise ValueError(f"MutualLearning: expected one or more different networks as peers, got {len(peers)}.")
        self.peers = nn.ModuleList(peers)
        self.temperature = temperature
        self.supervised = supervised
        self.needs_target = supervised

    def build(self, student_shapes: Mapping[str, Shape], teacher_shapes: Mapping[str, Shape]) -> None:
        """Check that there are classes to compare.

        Args:
            student_shapes: Holds the shape of the student's logits.
            teacher_shapes: Not read.

        Raises:
            ValueError: If the student has a single logit, or logits without a class axis.
        """
        super().build(student_shapes, teacher_shapes)
        student = student_shapes.get(LOGITS)
        if student is not None:
            check_class_axis("MutualLearning", student)
            if student[1] < 2:
                raise ValueError(
                    f"MutualLearning: a single logit, of shape {student}, has no classes to compare; give the networks "
                    "two."
                )

    def evaluate(self, step: StepTensors) -> Tensor:
        """Run the peers on what the student was called with, and compare all of them."""
        assert step.call is not None, "the engine gives the call"
        logits = [step.student_logits, *(step.call(peer) for peer in self.peers)]
        if any(one is None for one in logits):
            raise ValueError("MutualLearning: a peer's output has no logits; override logits_of.")
        value: Tensor = self(cast("list[Tensor]", logits), target=step.target)
        return value

    def forward(self, logits: list[Tensor], *, target: Tensor | None = None) -> Tensor:
        """Compute the unweighted loss of the cohort's logits, the student's first, see ``mutual_learning_loss``."""
        target = target if self.supervised else None
        return mutual_learning_loss(logits, target, temperature=self.now(self.temperature))
