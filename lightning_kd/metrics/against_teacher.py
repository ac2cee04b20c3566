"""What the metrics have in common that compare the student's class scores with the teacher's."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor

from lightning_kd.metrics.counts import Sums
from lightning_kd.metrics.rows import class_rows


class AgainstTeacher(Sums, ABC):
    """A metric of the student's class scores against the teacher's: ``update(student, teacher, target)``.

    Given by ``metrics=``, such a metric is computed once, and has no ``teacher_`` value beside it. Its states are sums,
    so its value does not depend on how the samples are split into batches and processes.

    Args:
        ignore_index: Class id that marks a sample, pixel or token without a label.

    Shape:
        - student, teacher: unnormalised class scores :math:`(B, C)` or :math:`(B, C, ...)`, of tokens
          :math:`(B, L, C)`.
        - target: class ids :math:`(B)` or :math:`(B, ...)`.
    """

    needs_target: ClassVar[bool] = True
    """Whether the metric reads labels. If so, samples without one do not count."""

    def __init__(self, ignore_index: int = -100, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.ignore_index = ignore_index

    def update(self, student: Tensor, teacher: Tensor, target: Tensor | None = None) -> None:
        """Count one batch.

        Args:
            student: The student's class scores.
            teacher: The teacher's.
            target: Class ids, which a metric without labels may do without.

        Raises:
            ValueError: If the shapes do not fit, an id names no class, or labels are missing.
        """
        name = type(self).__name__
        if target is None and self.needs_target:
            raise ValueError(f"{name}: labels are needed; call update(student, teacher, target).")
        (ours, theirs), ids = class_rows(
            name, (student, teacher), target, self.ignore_index, labelled_only=self.needs_target
        )
        self.count(ours, theirs, ids)

    @abstractmethod
    def count(self, student: Tensor, teacher: Tensor, ids: Tensor | None) -> None:
        """Add up one batch of rows.

        Args:
            student: The student's scores (M, C).
            teacher: The teacher's.
            ids: Class ids (M,), ``None`` without labels; never ``None`` if ``needs_target``.
        """


def a_sum() -> Tensor:
    """Return the zero that a sum of fractions begins with; 64 bits keep it exact over long data sets."""
    return torch.tensor(0.0, dtype=torch.float64)
