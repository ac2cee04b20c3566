"""Flow distillation (FSP): make the step from one layer of the student to the next that of the teacher."""

from collections.abc import Mapping
from itertools import pairwise
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_kd.losses.base import DistillationLoss, Layers, Layout, Shape
from lightning_kd.losses.stage import Stage
from lightning_kd.losses.tensors import add_up, pool_to_smaller, upcast_alike, wide, zero_of
from lightning_kd.schedules import Scalar, Unit

_SMALL_MAPS = 2**16
"""Up to so many numbers of a network's two maps the time of a step is that of starting operations."""


def fsp_matrix(bottom: Tensor, top: Tensor) -> Tensor:
    r"""Products of the channels of two layers, averaged over positions: how features flow from one to the other (FSP).

    .. math::
        G_{bij} = \frac{1}{HW} \sum_n \mathrm{top}_{bin} \, \mathrm{bottom}_{bjn}

    Of two maps of unequal height or width, the larger is average-pooled to the smaller, each axis for itself, as in
    RepDistiller's code; the paper takes the maximum.

    Shape:
        - bottom: :math:`(B, C_b, H_b, W_b)`, top: :math:`(B, C_t, H_t, W_t)`.
        - Output: :math:`(B, C_t, C_b)`.

    Args:
        bottom: Map of the earlier layer.
        top: Map of the later layer.

    Raises:
        ValueError: If a map is not 4-D or the batch sizes differ.

    Example:
        >>> fsp_matrix(torch.tensor([[[[1.0, 2.0]]]]), torch.tensor([[[[3.0, 4.0]], [[0.0, -1.0]]]]))
        tensor([[[ 5.5000],
                 [-1.0000]]])

    Reference:
        Yim et al., "A Gift from Knowledge Distillation", CVPR 2017.
    """
    _check_maps("fsp_matrix", bottom, top)
    return _product(bottom, top)


def fsp_loss(student_bottom: Tensor, student_top: Tensor, teacher_bottom: Tensor, teacher_top: Tensor) -> Tensor:
    r"""Mean squared distance between the flow matrices of student and teacher (FSP).

    .. math::
        L = \frac{1}{B C_t C_b} \lVert G(S) - G(T) \rVert_F^2

    Follows RepDistiller's code, which averages over the entries; the paper sums them.

    Shape:
        - student_bottom, teacher_bottom: :math:`(B, C_b, H, W)`; student_top, teacher_top: :math:`(B, C_t, H', W')`.
          Channels of student and teacher must agree, sizes need not.
        - Output: scalar :math:`()`, >= 0.

    Args:
        student_bottom: The student's earlier map.
        student_top: The student's later map.
        teacher_bottom: The teacher's earlier map; no gradient reaches it.
        teacher_top: The teacher's later map; no gradient reaches it.

    Raises:
        ValueError: If a map is not 4-D, or channels or batch sizes differ.

    Example:
        >>> maps = [torch.tensor([[[values]]]) for values in ([1.0, 2.0], [3.0, 4.0], [2.0, 0.0], [1.0, 1.0])]
        >>> fsp_loss(*maps)  # 5.5 against 1
        tensor(20.2500)

    Reference:
        Yim et al., "A Gift from Knowledge Distillation", CVPR 2017.
    """
    _check_maps("fsp_loss", student_bottom, student_top)
    _check_maps("fsp_loss", teacher_bottom, teacher_top)
    teacher, student = _exact_products(teacher_bottom, teacher_top, student_bottom, student_top)
    if student.shape != teacher.shape:
        raise ValueError(
            f"fsp_loss: expected equal batches and channels, got student {tuple(student_bottom.shape)} and "
            f"{tuple(student_top.shape)}, teacher {tuple(teacher_bottom.shape)} and {tuple(teacher_top.shape)}; "
            "bring the student to the teacher's channels with a projector."
        )
    if student_bottom.numel() == 0:
        return zero_of([student_bottom, student_top])
    product = _product(student_bottom, student_top)
    student = product + (student - product).detach()  # the exact value, with the gradient of the plain product
    return F.mse_loss(student, teacher).to(product.dtype)


@final
class FSPLoss(DistillationLoss):
    """Make the student's features change from layer to layer as the teacher's do (flow, FSP).

    Best for deep networks of the same layout. Every two neighbours in the list of layers are one flow; the losses of
    the flows are added. The published method asks for equal channels; where they differ, a trained 1x1 convolution
    brings the student's map to the teacher's channels first. As published, the loss alone trains the student in a
    first stage, and then the task alone.

    Args:
        student: Dotted names of at least two student layers, from the first to the last; by default the last map of
            every resolution.
        teacher: Dotted name of the teacher layer for each student layer, in the same order.
        stage_length: Epochs or steps of the first stage, >= 0; None is a tenth of the run, 0 leaves it out: the loss
            is then added to the others throughout. Published recipes take 30 epochs of 240.
        stage_unit: Whether ``stage_length`` counts epochs or optimizer steps.
        layout: Order of the layers' axes, such as ``"NHWC"``, or that of each layer by its name; by default it is found
            at set-up.
        weight: Factor of this part in the total loss, >= 0. It matters without a first stage; published recipes
            use 50.

    Raises:
        ValueError: If the layers do not pair up, or a number is out of its range.
    """

    reads = "maps"
    needs_maps = True

    def __init__(
        self,
        student: Layers = None,
        teacher: Layers = None,
        *,
        stage_length: int | None = None,
        stage_unit: Unit = "epoch",
        layout: Layout = None,
        weight: Scalar = 1.0,
    ) -> None:
        super().__init__(student, teacher, layout=layout, weight=weight)
        self.stage_length = stage_length
        self.stage_unit: Unit = stage_unit
        stage = Stage(stage_length, stage_unit, then_stops=True)
        self.stage = stage if stage_length != 0 else None
        self.projectors = nn.ModuleList()

    def build(self, student_shapes: Mapping[str, Shape], teacher_shapes: Mapping[str, Shape]) -> None:
        """Make a projector wherever the channels differ.

        Args:
            student_shapes: Shape of each named student layer.
            teacher_shapes: Shape of each named teacher layer.

        Raises:
            ValueError: If there are fewer than two layers, or one returns no map.
        """
        pairs = [
            (student_shapes[s], teacher_shapes[t])
            for s, t in zip(self.student_layers, self.teacher_layers, strict=True)
        ]
        if len(pairs) < 2 or any(len(shape) != 4 for pair in pairs for shape in pair):
            raise ValueError(
                f"FSPLoss: expected at least two layers of each network that return maps (B, C, H, W), got student "
                f"{[s for s, _ in pairs]} and teacher {[t for _, t in pairs]}; name two or more: "
                'FSPLoss(["layer1", "layer2"], ["layer1", "layer2"]).'
            )
        channels = [(student_shape[1], teacher_shape[1]) for student_shape, teacher_shape in pairs]
        self.projectors.extend(nn.Identity() if s == t else nn.Conv2d(s, t, 1, bias=False) for s, t in channels)

    def forward(self, student: list[Tensor], teacher: list[Tensor]) -> Tensor:
        """Compute the unweighted loss: the sum over neighbouring layers."""
        student_maps = [projector(features) for projector, features in zip(self.projectors, student, strict=True)]
        flows = zip(pairwise(student_maps), pairwise(teacher), strict=True)
        return add_up([fsp_loss(*student_flow, *teacher_flow) for student_flow, teacher_flow in flows])


def _product(bottom: Tensor, top: Tensor) -> Tensor:
    """Return the matrices (B, C_t, C_b)."""
    with torch.autocast(device_type=bottom.device.type, enabled=False):
        bottom, top = (features.flatten(2) for features in pool_to_smaller(*upcast_alike(bottom, top)))
        return top @ bottom.mT / bottom.shape[2]


def _exact_products(
    teacher_bottom: Tensor, teacher_top: Tensor, student_bottom: Tensor, student_top: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the exact matrices of teacher and student; of small maps both at once, as each operation costs more."""
    bottoms, tops = (teacher_bottom, student_bottom), (teacher_top, student_top)
    alike = all(one.shape == other.shape and one.dtype == other.dtype for one, other in (bottoms, tops))
    if alike and teacher_bottom.numel() + teacher_top.numel() <= _SMALL_MAPS:
        with torch.no_grad():
            teacher, student = _exact_product(torch.cat(bottoms), torch.cat(tops)).chunk(2)
        return teacher, student
    return _exact_product(teacher_bottom, teacher_top), _exact_product(student_bottom, student_top)


@torch.no_grad()
def _exact_product(bottom: Tensor, top: Tensor) -> Tensor:
    """Return the matrices in float64, so that two may be subtracted whose features lie close together, far from zero.

    Every channel is split into its mean (the level) and the rest. Only the products of the rest are summed over the
    positions, and that sum is in the precision of the tensors.
    """
    with torch.autocast(device_type=bottom.device.type, enabled=False):
        (bottom, bottom_level), (top, top_level) = (_part(features) for features in upcast_alike(bottom, top))
        bottom, top = (features.flatten(2) for features in pool_to_smaller(bottom, top))
        bottom_means, top_means = wide(bottom.mean(dim=2)), wide(top.mean(dim=2))
        products = wide(top @ bottom.mT / bottom.shape[2])
        return products.baddbmm_(top_level.unsqueeze(2), (bottom_level + bottom_means).unsqueeze(1)).baddbmm_(
            top_means.unsqueeze(2), bottom_level.unsqueeze(1)
        )


def _part(features: Tensor) -> tuple[Tensor, Tensor]:
    """Return the features less the mean of their channel, and that mean in float64."""
    level = features.mean(dim=(2, 3), keepdim=True)
    return features - level, wide(level.flatten(1))


def _check_maps(function: str, bottom: Tensor, top: Tensor) -> None:
    if bottom.ndim != 4 or top.ndim != 4 or bottom.shape[0] != top.shape[0]:
        raise ValueError(
            f"{function}: expected maps (B, C, H, W) of one batch, got bottom {tuple(bottom.shape)} and top "
            f"{tuple(top.shape)}."
        )
