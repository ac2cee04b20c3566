"""Probabilistic transfer (PKT): samples that are neighbours for the teacher shall be neighbours for the student."""

from typing import final

import torch
from torch import Tensor

from lightning_kd.losses.base import (
    DistillationLoss,
    Layers,
    add_up,
    check_positive,
    check_rows,
    pair_up,
    upcast,
)
from lightning_kd.schedules import Scalar


def pkt_loss(student: Tensor, teacher: Tensor, *, eps: float = 1e-7) -> Tensor:
    r"""Divergence of the student's neighbour probabilities from the teacher's (PKT).

    .. math::
        L = \frac{1}{B^2} \sum_{ij} p^t_{ij} \log \frac{p^t_{ij} + \epsilon}{p^s_{ij} + \epsilon}, \qquad
        p_{ij} = \frac{k_{ij}}{\sum_l k_{il}}, \quad
        k_{ij} = \tfrac{1}{2} \Big( \frac{x_i \cdot x_j}{(|x_i| + \epsilon)(|x_j| + \epsilon)} + 1 \Big)

    Follows the authors' code, which averages over all :math:`B^2` entries and counts a sample as its own neighbour;
    the paper sums over pairs of different samples. A sample of zeros has a finite gradient, where that code has NaN.

    Shape:
        - student: :math:`(B, ...)`, teacher: :math:`(B, ...)`; only the batch must agree.
        - Output: scalar :math:`()`.

    Args:
        student: Embeddings to train.
        teacher: Embeddings to imitate; no gradient reaches them.
        eps: Keeps norms and probabilities from 0, > 0.

    Raises:
        ValueError: If the batch sizes differ, a tensor has no axis beside the batch, or ``eps`` is not positive.

    Example:
        >>> student, teacher = torch.tensor([[2.0, 0.0], [0.0, 3.0]]), torch.tensor([[1.0, 0.0], [-5.0, 0.0]])
        >>> pkt_loss(student, teacher)  # (2/3, 1/3) against (1, 0) in both rows: ln(3/2) / 2
        tensor(0.2027)

    Reference:
        Passalis & Tefas, "Learning Deep Representations with Probabilistic Knowledge Transfer", ECCV 2018,
        arXiv:1803.10837.
    """
    check_positive("pkt_loss", eps=eps)
    check_rows("pkt_loss", student, teacher)
    with torch.autocast(device_type=student.device.type, enabled=False):
        mine, its = _neighbours(upcast(student), eps), _neighbours(upcast(teacher.detach()), eps)
        return (its * ((its + eps) / (mine + eps)).log()).mean()


@final
class PKTLoss(DistillationLoss):
    """Make the teacher's neighbours the student's neighbours (probabilistic knowledge transfer, PKT).

    Best for embeddings and retrieval: the widths may differ, and there is nothing to train beside the student. Large
    batches help. The losses of several pairs are added.

    Args:
        student: Dotted name of the student layer to read, or a list of them; by default the last features before the
            logits.
        teacher: Dotted name of the teacher layer for each student layer, in the same order.
        eps: Keeps norms and probabilities from 0, > 0.
        gather: Whether to compare the samples of all processes (the loss of the whole batch), or of each process alone.
        weight: Factor of this part in the total loss, >= 0. Published recipes use 30000.

    Raises:
        ValueError: If ``eps`` is not positive, the layers do not pair up, or the weight is negative or not finite.
    """

    reads = "embedding"
    relational = True

    def __init__(
        self,
        student: Layers = None,
        teacher: Layers = None,
        *,
        eps: float = 1e-7,
        gather: bool = True,
        weight: Scalar = 1.0,
    ) -> None:
        super().__init__(student, teacher, weight=weight)
        check_positive("PKTLoss", eps=eps)
        self.eps = eps
        self.gather = gather

    def forward(self, student: Tensor | list[Tensor], teacher: Tensor | list[Tensor]) -> Tensor:
        """Compute the unweighted loss of one pair of embeddings, or the sum over several."""
        return add_up([pkt_loss(s, t, eps=self.eps) for s, t in pair_up(student, teacher)])


def _neighbours(features: Tensor, eps: float) -> Tensor:
    """Return the probability (B, B) that row i picks j as its neighbour."""
    rows = features.flatten(1)
    rows = rows / (torch.linalg.vector_norm(rows, dim=1, keepdim=True) + eps)
    kernel: Tensor = (rows @ rows.T + 1.0) / 2.0
    return kernel / kernel.sum(dim=1, keepdim=True)
