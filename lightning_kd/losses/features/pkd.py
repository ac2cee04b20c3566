"""Pearson distillation (PKD): make each channel of the student go up and down where the teacher's does."""

from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_kd.losses.base import Layers, Layout, Shape
from lightning_kd.losses.checks import check_rows, check_same_shape
from lightning_kd.losses.pairs import LayerPairLoss
from lightning_kd.losses.tensors import in_range, pool_to_smaller, upcast_alike, zero_of
from lightning_kd.projectors import Projector, check_template, projector_between
from lightning_kd.schedules import Scalar

_EPS = 1e-6


def pkd_loss(student: Tensor, teacher: Tensor) -> Tensor:
    r"""Half the mean squared distance of two features of which each channel has mean 0 and deviation 1 (PKD).

    .. math::
        L = \frac{1}{2CM} \sum_{c,m} (\hat s_{cm} - \hat t_{cm})^2, \qquad
        \hat a_{cm} = \frac{a_{cm} - \bar a_c}{\sigma(a_c) + 10^{-6}}

    over the :math:`M` values of a channel, of all samples and positions, with the unbiased :math:`\sigma`. It is one
    minus the mean over the channels of Pearson's correlation, times :math:`(M - 1) / M`, so that neither the mean nor
    the positive scale of a channel makes a difference. Follows mmrazor, where the authors published their code. A
    channel that is constant passes on the gradient of a channel of deviation 1, where that code has none that is a
    number. Of two maps of unequal height or width, the larger is average-pooled to the smaller, each axis for itself;
    that code interpolates the student's.

    Shape:
        - student, teacher: :math:`(B, C)` or :math:`(B, N, C)`, equal; or maps :math:`(B, C, H_S, W_S)` and
          :math:`(B, C, H_T, W_T)`.
        - Output: scalar :math:`()`, in :math:`[0, 2]`; 0 where a channel has a single value.

    Args:
        student: Features to train, already projected to the teacher's width.
        teacher: Features to imitate; no gradient reaches them.

    Raises:
        ValueError: If the shapes differ in anything but the height and width of two maps, or have no channel axis.

    Example:
        >>> student, teacher = torch.tensor([[[[1.0, 2.0, 3.0]]]]), torch.tensor([[[[5.0, 9.0, 7.0]]]])
        >>> pkd_loss(student, teacher)  # (-1, 0, 1) against (-1, 1, 0): 2 / 3 / 2; the correlation is 1 / 2
        tensor(0.3333)

    Reference:
        Cao et al., "PKD: General Distillation Framework for Object Detectors via Pearson Correlation Coefficient",
        NeurIPS 2022, arXiv:2207.02039.
    """
    check_rows("pkd_loss", student, teacher)
    student, teacher = upcast_alike(student, teacher.detach())
    if student.ndim == teacher.ndim == 4 and student.shape[1] == teacher.shape[1]:
        student, teacher = pool_to_smaller(student, teacher)
    check_same_shape(
        "pkd_loss", student, teacher, "bring the student to the teacher's width with a projector, on layers that match"
    )
    axis = 2 if student.ndim == 3 else 1
    if student.numel() <= student.shape[axis]:  # a single value has no deviation
        return zero_of(student)
    return F.mse_loss(_normalised(student, axis), _normalised(teacher, axis)) / 2


@final
class PKDLoss(LayerPairLoss):
    """Make each channel of the student go up and down where the teacher's does (Pearson correlation on maps, PKD).

    Best for dense prediction between networks whose features have other sizes: another backbone, another detector,
    with or without normalisation. It asks only that the channels correlate, over all samples and positions of the
    batch, so that a few channels, levels or pixels of large values do not rule the loss. The losses of several pairs
    are added.

    Args:
        student: Dotted name of the student layer to read, or a list of them, such as the levels of a feature pyramid;
            by default its last map of every resolution.
        teacher: Dotted name of the teacher layer for each student layer, in the same order.
        gather: Whether mean and deviation of a channel are of the samples of all processes, which then all hold the
            features of all, and its gradient is that of one process with the whole batch; if not, they are each
            process's own, as in the published code, and the gradient is the mean of the processes'.
        layout: Order of the layers' axes, such as ``"NHWC"``, or that of each layer by its name; by default it is found
            at set-up.
        weight: Factor of this part in the total loss, >= 0. Published recipes use 6 or 10 for each level of a detector.
        projector: Which projector to copy for each pair, not yet built; by default none between equal widths, else a
            linear one that suits the layers' shapes.

    Raises:
        ValueError: If the layers do not pair up, the projector is built already, or the weight is negative or not
            finite.
    """

    reads = "maps"
    relational = True
    masking = "pack"
    per_pair = ("projectors",)

    def __init__(
        self,
        student: Layers = None,
        teacher: Layers = None,
        *,
        gather: bool = True,
        layout: Layout = None,
        weight: Scalar = 1.0,
        projector: Projector | None = None,
    ) -> None:
        super().__init__(student, teacher, layout=layout, weight=weight)
        check_template("PKDLoss", projector)
        self.gather = gather
        self.projector = projector
        self.projectors = nn.ModuleList()

    def build_pair(self, student: Shape, teacher: Shape) -> tuple[nn.Module]:
        """Make the projector of one pair: a copy of the given one, or the one that suits the widths."""
        if len(student) == len(teacher) == 3 and student[1] != teacher[1]:
            raise ValueError(
                f"expected the same number of tokens, got student {student} and teacher {teacher}; name layers that "
                "see the same tokens."
            )
        return (projector_between(self.projector, student, teacher, bias=False),)

    def compare(self, student: Tensor, teacher: Tensor, projector: nn.Module) -> Tensor:
        """Compute the unweighted loss of one pair of features, see ``pkd_loss``."""
        return pkd_loss(projector(student), teacher)


def _normalised(features: Tensor, axis: int) -> Tensor:
    others = tuple(one for one in range(features.ndim) if one != axis)
    features = in_range(features, 2, dim=others)
    variance, mean = torch.var_mean(features, dim=others, correction=1, keepdim=True)
    deviation = torch.where(variance > 0, variance, 1.0).sqrt()  # no root, and no infinite slope, at a variance of 0
    return (features - mean) / (deviation + _EPS)
