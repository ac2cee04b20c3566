"""How far the student's distribution over the classes is from the teacher's."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_kd.metrics.against_teacher import AgainstTeacher, a_sum


class FidelityKL(AgainstTeacher):
    r"""Mean of KL(teacher || student) over the samples, in nats, >= 0.

    .. math::
        \frac{1}{N} \sum_n \sum_c p^T_{nc} (\log p^T_{nc} - \log p^S_{nc}), \qquad p = \mathrm{softmax}(z)

    The temperature is 1, whatever the loss trains at: this is the distance of what the networks say in use. Labels are
    not needed; a class that the teacher rules out (a score of ``-inf``) adds nothing.

    Args:
        ignore_index: Class id that marks a pixel or token that does not count. A sample counts without its label.

    Shape:
        - student, teacher: class scores :math:`(B, C, ...)`; target: class ids :math:`(B, ...)`, or none.

    Example:
        >>> metric = FidelityKL()
        >>> metric.update(torch.tensor([[0.25, 0.75]]).log(), torch.tensor([[0.5, 0.5]]).log())
        >>> metric.compute()  # 0.5 log(0.5 / 0.25) + 0.5 log(0.5 / 0.75)
        tensor(0.1438, dtype=torch.float64)

    Reference:
        Stanton et al., "Does Knowledge Distillation Really Work?", NeurIPS 2021, arXiv:2106.05945.
    """

    higher_is_better = False
    needs_target = False
    nats: Tensor
    total: Tensor

    def __init__(self, ignore_index: int = -100, **kwargs: Any) -> None:
        super().__init__(ignore_index, **kwargs)
        self.add_state("nats", a_sum(), dist_reduce_fx="sum")
        self.add_state("total", torch.tensor(0), dist_reduce_fx="sum")

    def count(self, student: Tensor, teacher: Tensor, ids: Tensor | None) -> None:
        """Add up the divergences of one batch."""
        ours, theirs = F.log_softmax(student, 1), F.log_softmax(teacher, 1)
        terms = torch.where(theirs == -torch.inf, 0.0, theirs.exp() * (theirs - ours))
        self.nats += terms.sum(dtype=self.nats.dtype)
        self.total += len(terms)

    def compute(self) -> Tensor:
        """Return the mean over everything counted so far."""
        return self.nats / self.total
