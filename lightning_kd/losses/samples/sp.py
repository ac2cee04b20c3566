"""Similarity-preserving distillation (SP): make samples alike that are alike for the teacher."""

from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_kd.losses.base import Layers, Layout
from lightning_kd.losses.checks import check_rows
from lightning_kd.losses.pairs import LayerPairLoss
from lightning_kd.losses.tensors import in_range, unit, upcast_alike, zero_of
from lightning_kd.schedules import Scalar


def similarity_preserving_loss(student: Tensor, teacher: Tensor) -> Tensor:
    r"""Mean squared distance between the row-normalised similarities of the samples of a batch (SP).

    .. math::
        L = \frac{1}{B^2} \lVert \hat G(S) - \hat G(T) \rVert_F^2, \qquad G(A) = A A^\top, \quad
        \hat G_{i} = G_{i} / \lVert G_{i} \rVert_2

    with one flattened sample in each row of :math:`A`. Follows the paper and RepDistiller's code.

    Shape:
        - student: :math:`(B, ...)`, teacher: :math:`(B, ...)`; only the batch must agree.
        - Output: scalar :math:`()`, in :math:`[0, 4/B]`.

    Args:
        student: Features to train.
        teacher: Features to imitate; no gradient reaches them.

    Raises:
        ValueError: If the batch sizes differ, or a tensor has no axis beside the batch.

    Example:
        >>> student, teacher = torch.tensor([[3.0, 4.0], [0.0, 5.0]]), torch.tensor([[1.0, 0.0], [0.0, -2.0]])
        >>> similarity_preserving_loss(student, teacher)  # rows (.781, .625), (.625, .781) against the unit matrix
        tensor(0.2191)

    Reference:
        Tung & Mori, "Similarity-Preserving Knowledge Distillation", ICCV 2019, arXiv:1907.09682.
    """
    check_rows("similarity_preserving_loss", student, teacher)
    if student.numel() == 0:
        return zero_of(student)
    with torch.autocast(device_type=student.device.type, enabled=False):
        student, teacher = upcast_alike(student, teacher.detach())
        return F.mse_loss(_similarities(student), _similarities(teacher))


@final
class SPLoss(LayerPairLoss):
    """Make samples that excite the teacher alike excite the student alike (similarity-preserving, SP).

    Best on one late layer and with large batches; the widths and sizes of the layers may differ, and there is nothing
    to train beside the student. It says nothing about a sample by itself. The losses of several pairs are added.

    Args:
        student: Dotted name of the student layer to read, or a list of them; by default its last feature map.
        teacher: Dotted name of the teacher layer for each student layer, in the same order.
        gather: Whether the loss compares the samples of all processes, and its gradient is that of one process with the
            whole batch; if not, it compares each process's own, and the gradient is the mean of the processes'.
        layout: Order of the layers' axes, such as ``"NHWC"``, or that of each layer by its name; by default it is found
            at set-up.
        weight: Factor of this part in the total loss, >= 0. Published recipes use 3000.

    Raises:
        ValueError: If the layers do not pair up, or the weight is negative or not finite.
    """

    reads = "map"
    relational = True
    compares_positions = False
    masking = "zero"

    def __init__(
        self,
        student: Layers = None,
        teacher: Layers = None,
        *,
        gather: bool = True,
        layout: Layout = None,
        weight: Scalar = 1.0,
    ) -> None:
        super().__init__(student, teacher, layout=layout, weight=weight)
        self.gather = gather

    def compare(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Compute the unweighted loss of one pair of features, see ``similarity_preserving_loss``."""
        return similarity_preserving_loss(student, teacher)


def _similarities(features: Tensor) -> Tensor:
    rows = in_range(features.flatten(1), 4)
    products = in_range(rows @ rows.T, 2, dim=(1,))
    return unit(products, dim=1)
