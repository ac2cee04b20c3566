"""What gets worse when the student takes its teacher's place."""

from typing import Any, cast

import torch
from torch import Tensor

from lightning_kd.metrics.against_teacher import AgainstTeacher


class NegativeFlips(AgainstTeacher):
    """Share of all samples that the teacher has right and the student has wrong, 0..1 (negative flip rate).

    These are the samples that a user sees break when the student replaces its teacher. Without any sample it is NaN.

    Args:
        ignore_index: Class id that marks a sample without a label.

    Shape:
        - student, teacher: class scores :math:`(B, C, ...)`; target: class ids :math:`(B, ...)`.

    Example:
        >>> metric = NegativeFlips()
        >>> student, teacher = torch.tensor([[3.0, 0.0], [0.0, 3.0]]), torch.tensor([[2.0, 1.0], [2.0, 1.0]])
        >>> metric.update(student, teacher, torch.tensor([0, 0]))  # the teacher has both right, the student the first
        >>> metric.compute()
        tensor(0.5000)

    Reference:
        Yan et al., "Positive-Congruent Training: Towards Regression-Free Model Updates", CVPR 2021, arXiv:2011.09161.
    """

    higher_is_better = False
    flips: Tensor
    total: Tensor

    def __init__(self, ignore_index: int = -100, **kwargs: Any) -> None:
        super().__init__(ignore_index, **kwargs)
        self.add_state("flips", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("total", torch.tensor(0), dist_reduce_fx="sum")

    def count(self, student: Tensor, teacher: Tensor, ids: Tensor | None) -> None:
        """Count the flips of one batch."""
        target = cast(Tensor, ids)
        self.flips += ((teacher.argmax(1) == target) & (student.argmax(1) != target)).sum()
        self.total += len(target)

    def compute(self) -> Tensor:
        """Return the share over everything counted so far."""
        return self.flips / self.total
