"""The simple recipe (SRD): a linear projector, batch normalisation, and the largest differences count."""

import copy
import math
from typing import final

import torch
from torch import Tensor, nn

from lightning_kd.losses.base import Layers, Layout, Shape
from lightning_kd.losses.checks import check_rows, check_same_shape
from lightning_kd.losses.pairs import LayerPairLoss
from lightning_kd.losses.tensors import in_range, upcast_alike, zero_of
from lightning_kd.projectors import Projector, check_template, default_projector, width
from lightning_kd.schedules import Scalar, check_constants

_EPS = 1e-4
_SMALLEST = 1e-5


def srd_loss(student: Tensor, teacher: Tensor, *, exponent: float = 4.0) -> Tensor:
    r"""Soft maximum of the distances of two features whose channels have mean 0 and deviation 1 (SRD).

    .. math::
        L = \log \sum_{b,c} |\hat s_{bc} - \hat t_{bc}|^\alpha, \qquad
        \hat a_{bc} = \frac{a_{bc} - \bar a_c}{\sqrt{\sigma^2(a_c) + 10^{-4}}}

    over the batch, with the biased :math:`\sigma^2`, which is a batch normalisation without weights. The higher the
    exponent, the more the largest differences rule. Follows the authors' code for ImageNet; their factor 2 before the
    logarithm is the weight of ``SRDLoss``, and the code beside it adds ``KDLoss(temperature=1)``. A sum below
    :math:`10^{-5}` counts as that number, without gradient, where the logarithm would have no end; and a constant
    channel passes on the gradient of a channel of deviation 1, where that code would multiply it by 100.

    Shape:
        - student, teacher: :math:`(B, C)`, equal.
        - Output: scalar :math:`()`, >= :math:`\log 10^{-5}`; it may be negative.

    Args:
        student: Features to train, already projected to the teacher's width.
        teacher: Features to imitate; no gradient reaches them.
        exponent: The power of the differences, >= 1. The paper uses 4.

    Raises:
        ValueError: If the shapes differ or are not 2-D, or ``exponent`` is below 1 or not finite.

    Example:
        >>> student, teacher = torch.tensor([[100.0], [-100.0]]), torch.tensor([[-100.0], [100.0]])
        >>> srd_loss(student, teacher)  # (1, -1) against (-1, 1): log(2^4 + 2^4)
        tensor(3.4657)

    Reference:
        Miles & Mikolajczyk, "Understanding the Role of the Projector in Knowledge Distillation", AAAI 2024,
        arXiv:2303.11098.
    """
    _check_exponent("srd_loss", exponent)
    check_rows("srd_loss", student, teacher)
    check_same_shape("srd_loss", student, teacher, "bring the student to the teacher's width with a linear projector")
    if student.ndim != 2:
        raise ValueError(
            f"srd_loss: expected features (B, C), got student {tuple(student.shape)} and teacher "
            f"{tuple(teacher.shape)}; take the mean over the positions."
        )
    student, teacher = upcast_alike(student, teacher.detach())
    if student.numel() == 0:
        return zero_of(student)
    with torch.autocast(device_type=student.device.type, enabled=False):
        differences = _normalised(student) - _normalised(teacher)
        return differences.abs().pow(exponent).sum().clamp_min(_SMALLEST).log()


@final
class SRDLoss(LayerPairLoss):
    """Make the student's features those of the teacher up to a linear map, the largest differences first (SRD).

    Best for the last features before the logits of classifiers, beside ``KDLoss``. A trained linear projector brings
    the student's features to the teacher's width, also between equal widths, since what it learns is what lets the
    student keep features of its own. Of a map, or tokens, the mean over the positions is read. The logarithm keeps the
    size of the gradient whatever the distance, so that it never fades out by itself. The losses of several pairs are
    added.

    Args:
        student: Dotted name of the student layer to read, or a list of them; by default the last features before the
            logits.
        teacher: Dotted name of the teacher layer for each student layer, in the same order.
        exponent: The power of the differences, >= 1. The paper uses 4.
        gather: Whether the loss is of the samples of all processes, and its gradient is that of one process with the
            whole batch; if not, each process normalises its own, and the gradient is the mean of the processes'.
        layout: Order of the layers' axes, such as ``"NHWC"``, or that of each layer by its name; by default it is found
            at set-up.
        weight: Factor of this part in the total loss, >= 0. Published recipes use 2 beside ``KDLoss(temperature=1)``
            with a weight of 1, and a task weight of 1.
        projector: Which projector of vectors (B, C) to copy for each pair, not yet built; by default a linear one.

    Raises:
        ValueError: If ``exponent`` is below 1, the layers do not pair up, the projector is built already, or the weight
            is negative or not finite.
    """

    reads = "embedding"
    relational = True
    masking = "mean"
    per_pair = ("projectors",)

    def __init__(
        self,
        student: Layers = None,
        teacher: Layers = None,
        *,
        exponent: float = 4.0,
        gather: bool = True,
        layout: Layout = None,
        weight: Scalar = 1.0,
        projector: Projector | None = None,
    ) -> None:
        super().__init__(student, teacher, layout=layout, weight=weight)
        _check_exponent("SRDLoss", exponent)
        check_template("SRDLoss", projector)
        self.exponent = exponent
        self.gather = gather
        self.projector = projector
        self.projectors = nn.ModuleList()

    def build_pair(self, student: Shape, teacher: Shape) -> tuple[nn.Module]:
        """Make the projector of one pair: a copy of the given one, or a linear one."""
        if not (2 <= len(student) <= 4 and 2 <= len(teacher) <= 4):
            raise ValueError(
                f"expected features (B, C), (B, N, C) or (B, C, H, W), got student {student} and teacher {teacher}; "
                "name other layers."
            )
        vectors = (student[0], width(student)), (teacher[0], width(teacher))
        projector = default_projector(*vectors, bias=False) if self.projector is None else copy.deepcopy(self.projector)
        projector.build(*vectors)
        return (projector,)

    def compare(self, student: Tensor, teacher: Tensor, projector: nn.Module) -> Tensor:
        """Compute the unweighted loss of one pair of features, see ``srd_loss``."""
        return srd_loss(projector(_pooled(student)), _pooled(teacher), exponent=self.exponent)


def _pooled(features: Tensor) -> Tensor:
    """Return the mean over the positions of tokens (B, N, C) or a map (B, C, H, W)."""
    if features.ndim == 3:
        return features.mean(dim=1)
    return features.mean(dim=(2, 3)) if features.ndim == 4 else features


def _normalised(features: Tensor) -> Tensor:
    features = in_range(features, 2, dim=(0,))
    variance, mean = torch.var_mean(features, dim=0, correction=0, keepdim=True)
    return (features - mean) / torch.where(variance > 0, variance + _EPS, 1.0).sqrt()  # a constant is not stretched


def _check_exponent(function: str, exponent: float) -> None:
    check_constants(function, exponent=exponent)
    if not 1.0 <= exponent < math.inf:
        raise ValueError(f"{function}: expected a finite exponent >= 1, got {exponent}.")
