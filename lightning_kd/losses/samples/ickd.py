"""Inter-channel correlation (ICKD): make channels alike that are alike for the teacher."""

from copy import deepcopy
from typing import final

import torch
from torch import Tensor, nn

from lightning_kd.losses.base import Layers, Layout, Shape
from lightning_kd.losses.checks import check_maps, check_same_batch
from lightning_kd.losses.pairs import LayerPairLoss
from lightning_kd.losses.tensors import in_range, unit, upcast_alike, zero_of
from lightning_kd.projectors import ConvProjector, Projector, check_template
from lightning_kd.schedules import Scalar


def ickd_loss(student: Tensor, teacher: Tensor) -> Tensor:
    r"""Mean squared distance between the row-normalised correlations of the channels of two maps (ICKD).

    .. math::
        L = \frac{1}{BC} \sum_b \lVert \hat G(S_b) - \hat G(T_b) \rVert_F^2, \qquad G(A) = A A^\top, \quad
        \hat G_{c} = G_{c} / \lVert G_{c} \rVert_2

    with one flattened channel in each row of :math:`A`. Follows the published code of ICKD-C, as it is found in
    copies that name the paper: the channels themselves are not normalised, the rows of the products are, and the
    squares are summed over a row.

    Shape:
        - student: :math:`(B, C, H, W)`, teacher: :math:`(B, C, H', W')`; channels must agree, sizes need not.
        - Output: scalar :math:`()`, in :math:`[0, 4]`.

    Args:
        student: Feature map to train.
        teacher: Feature map to imitate; no gradient reaches it.

    Raises:
        ValueError: If a map is not 4-D, or batch sizes or channels differ.

    Example:
        >>> student = torch.tensor([[[[1.0, 0.0]], [[1.0, 1.0]]]])  # G = ((1, 1), (1, 2))
        >>> teacher = torch.tensor([[[[2.0, 0.0]], [[0.0, 1.0]]]])  # G = ((4, 0), (0, 1))
        >>> ickd_loss(student, teacher)  # (2 - 2 / sqrt(2) + 2 - 2 * 2 / sqrt(5)) / 2
        tensor(0.3985)

    Reference:
        Liu et al., "Exploring Inter-Channel Correlation for Diversity-preserved Knowledge Distillation", ICCV 2021,
        arXiv:2202.03680.
    """
    check_maps("ickd_loss", tuple(student.shape), tuple(teacher.shape))
    check_same_batch("ickd_loss", student, teacher)
    if student.shape[1] != teacher.shape[1]:
        raise ValueError(
            f"ickd_loss: expected equal channels, got student {tuple(student.shape)} and teacher "
            f"{tuple(teacher.shape)}; bring the student to the teacher's channels with a projector, as ICKDLoss does."
        )
    if student.numel() == 0:
        return zero_of(student)
    with torch.autocast(device_type=student.device.type, enabled=False):
        student_products, teacher_products = (
            _correlations(features.flatten(2)) for features in upcast_alike(student, teacher.detach())
        )
        batch, channels = student.shape[:2]
        return (student_products - teacher_products).square().sum() / (batch * channels)


@final
class ICKDLoss(LayerPairLoss):
    """Make channels that fire together in the teacher fire together in the student (inter-channel correlation, ICKD).

    Best for the last feature map of convolutional networks, whose positions need not agree. Each pair of layers gets a
    trained 1x1 convolution with batch normalisation from the student's channels to the teacher's, as in the published
    code. The losses of several pairs are added.

    Args:
        student: Dotted name of the student layer to read, or a list of them; by default its last feature map.
        teacher: Dotted name of the teacher layer for each student layer, in the same order.
        projector: Which projector to copy for each pair, not yet built; by default a 1x1 convolution without offset
            and a batch normalisation.
        layout: Order of the layers' axes, such as ``"NHWC"``, or that of each layer by its name; by default it is found
            at set-up.
        weight: Factor of this part in the total loss, >= 0.

    Raises:
        ValueError: If the layers do not pair up, the projector is built already, or the weight is negative or not
            finite.
    """

    reads = "map"
    needs_maps = True
    per_pair = ("projectors",)

    def __init__(
        self,
        student: Layers = None,
        teacher: Layers = None,
        *,
        projector: Projector | None = None,
        layout: Layout = None,
        weight: Scalar = 1.0,
    ) -> None:
        super().__init__(student, teacher, layout=layout, weight=weight)
        check_template("ICKDLoss", projector)
        self.projector = projector
        self.projectors = nn.ModuleList()

    def build_pair(self, student: Shape, teacher: Shape) -> tuple[nn.Module]:
        """Make the projector of one pair: a copy of the given one, or a convolution with batch normalisation."""
        projector = ConvProjector(bias=False, norm=True) if self.projector is None else deepcopy(self.projector)
        projector.build(student, teacher)
        return (projector,)

    def compare(self, student: Tensor, teacher: Tensor, projector: nn.Module) -> Tensor:
        """Compute the unweighted loss of one pair of maps, see ``ickd_loss``."""
        return ickd_loss(projector(student), teacher)


def _correlations(channels: Tensor) -> Tensor:
    channels = in_range(channels, 4, dim=(1, 2))
    products = in_range(channels @ channels.mT, 2, dim=(2,))
    return unit(products, dim=2)
