"""Whether the student makes its teacher's mistakes."""

from typing import Any, cast

import torch
from torch import Tensor

from lightning_kd.metrics.against_teacher import AgainstTeacher


class AgreementOnMistakes(AgainstTeacher):
    """Of the samples where the teacher is wrong: the share where the student names the same wrong class, 0..1.

    A student that learns the task but not the teacher has a small value, one that copies its teacher a large one.
    Without a mistake of the teacher the value is NaN.

    Args:
        ignore_index: Class id that marks a sample without a label.

    Shape:
        - student, teacher: class scores :math:`(B, C, ...)`; target: class ids :math:`(B, ...)`.

    Example:
        >>> metric = AgreementOnMistakes()
        >>> student, teacher = torch.tensor([[3.0, 0.0], [0.0, 3.0]]), torch.tensor([[2.0, 1.0], [2.0, 1.0]])
        >>> metric.update(student, teacher, torch.tensor([1, 1]))  # the teacher says 0 twice, the student once
        >>> metric.compute()
        tensor(0.5000)
    """

    higher_is_better = None
    same: Tensor
    total: Tensor

    def __init__(self, ignore_index: int = -100, **kwargs: Any) -> None:
        super().__init__(ignore_index, **kwargs)
        self.add_state("same", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("total", torch.tensor(0), dist_reduce_fx="sum")

    def count(self, student: Tensor, teacher: Tensor, ids: Tensor | None) -> None:
        """Count the teacher's mistakes of one batch."""
        theirs = teacher.argmax(1)
        mistakes = theirs != cast(Tensor, ids)
        self.same += (mistakes & (student.argmax(1) == theirs)).sum()
        self.total += mistakes.sum()

    def compute(self) -> Tensor:
        """Return the share over everything counted so far."""
        return self.same / self.total
