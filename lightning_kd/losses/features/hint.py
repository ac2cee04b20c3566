"""Feature distillation (hints, FitNets): make the student's features those of the teacher."""

import copy
from typing import final

import torch.nn.functional as F
from torch import Tensor, nn

from lightning_kd.losses.base import Layers, Layout, Shape
from lightning_kd.losses.checks import check_same_shape
from lightning_kd.losses.pairs import LayerPairLoss
from lightning_kd.losses.tensors import pool_to_smaller, upcast_alike
from lightning_kd.projectors import Projector, check_template, default_projector
from lightning_kd.schedules import Scalar


def hint_loss(student: Tensor, teacher: Tensor) -> Tensor:
    r"""Mean squared distance between two features of equal width (hint, FitNets).

    .. math::
        L = \frac{1}{M} \sum_{m} (s_m - t_m)^2

    over all :math:`M` elements of the batch. Follows RepDistiller's code; the paper halves the sum of the squares.
    Of two maps of unequal height or width, the larger is average-pooled to the smaller, each axis for itself.

    Shape:
        - student, teacher: :math:`(B, C)`, :math:`(B, N, C)` or any equal shapes; or maps :math:`(B, C, H_S, W_S)` and
          :math:`(B, C, H_T, W_T)`.
        - Output: scalar :math:`()`, >= 0.

    Args:
        student: Features to train, already projected to the teacher's width.
        teacher: Features to imitate; no gradient reaches them.

    Raises:
        ValueError: If the shapes differ in anything but the height and width of two maps.

    Example:
        >>> import torch
        >>> hint_loss(torch.tensor([[1.0, -2.0]]), torch.tensor([[3.0, 1.0]]))  # (4 + 9) / 2
        tensor(6.5000)
        >>> hint_loss(torch.tensor([[[[1.0, 4.0]]]]), torch.tensor([[[[-1.0]]]]))  # mean 2.5 against -1
        tensor(12.2500)

    Reference:
        Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015, arXiv:1412.6550.
    """
    student, teacher = upcast_alike(student, teacher.detach())
    if student.ndim == teacher.ndim == 4 and student.shape[:2] == teacher.shape[:2]:
        student, teacher = pool_to_smaller(student, teacher)
    check_same_shape(
        "hint_loss", student, teacher, "bring the student to the teacher's width with a projector, on layers that match"
    )
    if student.numel() == 0:
        return student.sum() * 0.0
    return F.mse_loss(student, teacher)


@final
class HintLoss(LayerPairLoss):
    """Make the student's features those of the teacher (feature distillation, hints, FitNets).

    Each pair of layers gets a trained projector from the student's width to the teacher's; the distances of several
    pairs are added.

    Args:
        student: Dotted name of the student layer to read, or a list of them; by default its last feature map.
        teacher: Dotted name of the teacher layer for each student layer, in the same order.
        layout: Order of the layers' axes, such as ``"NHWC"``, or that of each layer by its name; by default it is found
            at set-up.
        weight: Factor of this part in the total loss, >= 0. Published recipes use 100.
        projector: Which projector to copy for each pair, not yet built; by default a linear one that suits the
            layers' shapes. ``ConvRegressor()`` reproduces RepDistiller.

    Raises:
        ValueError: If the layers do not pair up, the projector is built already, or the weight is
            negative or not finite.
    """

    reads = "map"
    per_pair = ("projectors",)
    masking = "pack"

    def __init__(
        self,
        student: Layers = None,
        teacher: Layers = None,
        *,
        layout: Layout = None,
        weight: Scalar = 1.0,
        projector: Projector | None = None,
    ) -> None:
        super().__init__(student, teacher, layout=layout, weight=weight)
        check_template("HintLoss", projector)
        self.projector = projector
        self.projectors = nn.ModuleList()

    def build_pair(self, student: Shape, teacher: Shape) -> tuple[nn.Module]:
        """Make the projector of one pair: a copy of the given one, or the linear one that suits the shapes."""
        if len(student) == len(teacher) == 3 and student[1] != teacher[1]:
            raise ValueError(
                f"expected the same number of tokens, got student {student} and teacher {teacher}; name layers that "
                "see the same tokens."
            )
        projector = default_projector(student, teacher) if self.projector is None else copy.deepcopy(self.projector)
        projector.build(student, teacher)
        return (projector,)

    def compare(self, student: Tensor, teacher: Tensor, projector: nn.Module) -> Tensor:
        """Compute the unweighted loss of one pair of features, see ``hint_loss``."""
        return hint_loss(projector(student), teacher)
