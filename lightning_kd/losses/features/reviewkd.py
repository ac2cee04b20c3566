"""Knowledge review (ReviewKD): let each stage of the student learn from the teacher's stages up to its own."""

from collections.abc import Mapping
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_kd.losses.base import DistillationLoss, Layers, Layout, Shape
from lightning_kd.losses.checks import check_maps, check_same_shape
from lightning_kd.losses.tensors import add_up, upcast_alike
from lightning_kd.schedules import Scalar, check_whole

_LEVELS = (4, 2, 1)
_MOST_CHANNELS = 512


def hcl_loss(student: Tensor, teacher: Tensor) -> Tensor:
    r"""Mean squared distance of two maps and of their coarser versions (hierarchical context loss of ReviewKD).

    .. math::
        L = \frac{\sum_{k=0}^{K} 2^{-k} \, \mathrm{MSE}(P_k(s), P_k(t))}{\sum_{k=0}^{K} 2^{-k}}

    where :math:`P_0` leaves a map as it is and the others average-pool it to 4x4, 2x2 and 1x1; sizes that are not
    smaller than the map are left out, and do not count in the weights. Follows the authors' code, which looks at the
    height alone; here a map that is not square is pooled along each axis that is longer.

    Shape:
        - student, teacher: :math:`(B, C, H, W)`.
        - Output: scalar :math:`()`, >= 0.

    Args:
        student: Fused map to train, already of the teacher's shape.
        teacher: Map to imitate; no gradient reaches it.

    Raises:
        ValueError: If a map is not 4-D, or the shapes differ.

    Example:
        >>> student, teacher = torch.tensor([[[[3.0], [0.0]]]]), torch.tensor([[[[1.0], [-2.0]]]])
        >>> hcl_loss(student, teacher)  # 2 everywhere, so 4 at both sizes
        tensor(4.)
        >>> hcl_loss(student, -teacher)  # (16 + 4) / 2 in full, (1.5 - .5)^2 in one: (10 + 1 / 2) / 1.5
        tensor(7.)

    Reference:
        Chen et al., "Distilling Knowledge via Knowledge Review", CVPR 2021, arXiv:2104.09044.
    """
    check_maps("hcl_loss", tuple(student.shape), tuple(teacher.shape))
    check_same_shape("hcl_loss", student, teacher, "bring the student to the teacher's shape, as ReviewKDLoss does")
    student, teacher = upcast_alike(student, teacher.detach())
    if student.numel() == 0:
        return student.sum() * 0.0
    loss, weight, total = F.mse_loss(student, teacher), 1.0, 1.0
    coarse = difference = student - teacher
    for level in _LEVELS:
        if level < max(difference.shape[2:]):
            coarse = _pool(difference, coarse, level)
            weight /= 2.0
            total += weight
            loss = loss + weight * coarse.square().mean()
    return loss / total


@final
class ReviewKDLoss(DistillationLoss):
    """Let each stage of the student learn from the teacher's stages up to its own (knowledge review, ReviewKD).

    Best for convolutional networks whose stages correspond; among the strongest feature methods, at the price of many
    parameters of its own. From the last stage to the first, a trained module fuses the student's map with what comes
    down from the later stages, by two trained attention maps, and brings the result to the shape of the teacher's map;
    the losses of the stages are added. Features without positions ``(B, C)`` count as a map of size 1, so that
    the pooled embedding can be the last stage, as in the published recipes.

    Args:
        student: Dotted names of at least two student layers, from the first to the last; by default the last map of
            every resolution.
        teacher: Dotted name of the teacher layer for each student layer, in the same order.
        mid_channels: Number of channels in which the stages are fused, >= 1; by default those of the student's last
            layer, but at most 512, as in the published code.
        layout: Order of the layers' axes, such as ``"NHWC"``, or that of each layer by its name; by default it is found
            at set-up.
        weight: Factor of this part in the total loss, >= 0. Published recipes use 1 to 8 with 20 epochs to warm up:
            ``WarmUpSchedule(5.0, length=20)``.

    Raises:
        ValueError: If the layers do not pair up, or a number is out of its range.
    """

    reads = "maps"
    needs_maps = True
    in_a_plane = True

    def __init__(
        self,
        student: Layers = None,
        teacher: Layers = None,
        *,
        mid_channels: int | None = None,
        layout: Layout = None,
        weight: Scalar = 1.0,
    ) -> None:
        super().__init__(student, teacher, layout=layout, weight=weight)
        if mid_channels is not None:
            check_whole("ReviewKDLoss", "mid_channels", mid_channels, 1)
        self.mid_channels = mid_channels
        self.fusions = nn.ModuleList()

    def build(self, student_shapes: Mapping[str, Shape], teacher_shapes: Mapping[str, Shape]) -> None:
        """Make the fusion module of each stage.

        Args:
            student_shapes: Shape of each named student layer.
            teacher_shapes: Shape of each named teacher layer.

        Raises:
            ValueError: If there are fewer than two layers, or one returns neither a map nor an embedding.
        """
        student_stages = [student_shapes[name] for name in self.student_layers]
        teacher_stages = [teacher_shapes[name] for name in self.teacher_layers]
        if len(student_stages) < 2 or any(len(shape) not in (2, 4) for shape in (*student_stages, *teacher_stages)):
            raise ValueError(
                f"ReviewKDLoss: expected at least two layers of each network that return maps (B, C, H, W) or an "
                f"embedding (B, C), got student {student_stages} and teacher {teacher_stages}; name two or more: "
                'ReviewKDLoss(["layer1", "layer2"], ["layer1", "layer2"]).'
            )
        middle = self.mid_channels or min(_MOST_CHANNELS, student_stages[-1][1])
        for i, (student_shape, teacher_shape) in enumerate(zip(student_stages, teacher_stages, strict=True)):
            self.fusions.append(_Fusion(student_shape[1], middle, teacher_shape[1], fuses=i < len(student_stages) - 1))

    def forward(self, student: list[Tensor], teacher: list[Tensor]) -> Tensor:
        """Compute the unweighted loss: the sum of ``hcl_loss`` over the stages."""
        losses, later = [], None
        stages = list(zip(self.fusions, map(_as_map, student), map(_as_map, teacher), strict=True))
        for fusion, student_map, teacher_map in reversed(stages):
            fused, later = fusion(student_map, later, teacher_map.shape[2:])
            losses.append(hcl_loss(fused, teacher_map))
        return add_up(losses)


class _Fusion(nn.Module):
    """Attention-based fusion (ABF): the stage's map and what comes from the later stages, in the teacher's shape."""

    def __init__(self, in_channels: int, mid_channels: int, out_channels: int, fuses: bool) -> None:
        super().__init__()
        self.enter = nn.Conv2d(in_channels, mid_channels, 1, bias=False)
        self.enter_norm = nn.BatchNorm2d(mid_channels)
        self.attention = nn.Conv2d(2 * mid_channels, 2, 1) if fuses else None
        self.leave = nn.Conv2d(mid_channels, out_channels, 3, padding=1, bias=False)
        self.leave_norm = nn.BatchNorm2d(out_channels)
        for convolution in (self.enter, self.leave):
            nn.init.kaiming_uniform_(convolution.weight, a=1)

    def forward(self, student: Tensor, later: Tensor | None, size: torch.Size) -> tuple[Tensor, Tensor]:
        fused: Tensor = self.enter_norm(self.enter(student))
        if self.attention is not None and later is not None:
            later = _resize(later, fused.shape[2:])
            own, others = self.attention(torch.cat([fused, later], dim=1)).sigmoid().split(1, dim=1)
            fused = fused * own + later * others
        fused = _resize(fused, size)
        return self.leave_norm(self.leave(fused)), fused


def _as_map(features: Tensor) -> Tensor:
    return features[:, :, None, None] if features.ndim == 2 else features


def _resize(features: Tensor, size: torch.Size) -> Tensor:
    return features if features.shape[2:] == size else F.interpolate(features, size, mode="nearest")


def _pool(full: Tensor, coarse: Tensor, level: int) -> Tensor:
    """Pool a map to at most ``level`` along each axis, from its already coarser version where cells nest."""
    nests = all(whole % part == 0 for whole, part in zip(full.shape[2:], coarse.shape[2:], strict=True))
    source = coarse if nests else full
    height, width = source.shape[2:]
    to_height, to_width = min(level, height), min(level, width)
    if height % to_height or width % to_width:
        return F.adaptive_avg_pool2d(source, (to_height, to_width))
    return F.avg_pool2d(source, (height // to_height, width // to_width))  # the same, twice as fast
