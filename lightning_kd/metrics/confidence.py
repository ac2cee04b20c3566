"""Whether the student is sure where its teacher is sure."""

from typing import Any

import torch
from torch import Tensor

from lightning_kd.metrics.against_teacher import AgainstTeacher, a_sum


class ConfidenceCorrelation(AgainstTeacher):
    """Pearson's correlation of the student's and the teacher's highest probabilities over the samples, -1..1.

    It asks whether both find the same samples hard, whichever class they name. NaN where one of them is equally
    confident of all samples.

    Args:
        ignore_index: Class id that marks a pixel or token that does not count. A sample counts without its label.

    Shape:
        - student, teacher: class scores :math:`(B, C, ...)`; target: class ids :math:`(B, ...)`, or none.

    Example:
        >>> metric = ConfidenceCorrelation()
        >>> student = torch.tensor([[0.9, 0.1], [0.4, 0.6], [0.7, 0.3]]).log()
        >>> teacher = torch.tensor([[0.8, 0.2], [0.5, 0.5], [0.35, 0.65]]).log()
        >>> metric.update(student, teacher)  # confidences 0.9, 0.6, 0.7 and 0.8, 0.5, 0.65
        >>> metric.compute()
        tensor(0.9820, dtype=torch.float64)
    """

    higher_is_better = True
    needs_target = False
    total: Tensor
    student: Tensor
    teacher: Tensor
    student_squared: Tensor
    teacher_squared: Tensor
    product: Tensor

    def __init__(self, ignore_index: int = -100, **kwargs: Any) -> None:
        super().__init__(ignore_index, **kwargs)
        for name in ("total", "student", "teacher", "student_squared", "teacher_squared", "product"):
            self.add_state(name, a_sum(), dist_reduce_fx="sum")

    def count(self, student: Tensor, teacher: Tensor, ids: Tensor | None) -> None:
        """Add up the confidences of one batch."""
        ours = student.softmax(1).amax(1).to(self.total.dtype)
        theirs = teacher.softmax(1).amax(1).to(self.total.dtype)
        self.total += len(ours)
        self.student += ours.sum()
        self.teacher += theirs.sum()
        self.student_squared += ours.square().sum()
        self.teacher_squared += theirs.square().sum()
        self.product += (ours * theirs).sum()

    def compute(self) -> Tensor:
        """Return the correlation over everything counted so far."""
        mean, its_mean = self.student / self.total, self.teacher / self.total
        variance = self.student_squared / self.total - mean.square()
        its_variance = self.teacher_squared / self.total - its_mean.square()
        covariance = self.product / self.total - mean * its_mean
        # what is left of equal confidences is rounding
        smallest = 16 * torch.finfo(self.total.dtype).eps
        known = (variance > smallest) & (its_variance > smallest)
        value = covariance / (variance.clamp_min(smallest) * its_variance.clamp_min(smallest)).sqrt()
        return torch.where(known, value.clamp(-1, 1), torch.nan)
