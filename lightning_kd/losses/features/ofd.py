"""Overhauled feature distillation (OFD): give the student what the teacher's activation lets pass, and no more."""

import math
from collections.abc import Mapping, Sequence
from typing import final

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lightning_kd.capture.activation_input import activation_in
from lightning_kd.capture.private import BatchNorm
from lightning_kd.distributed.gather import is_distributed
from lightning_kd.losses.base import DistillationLoss, Layers, Layout, Shape
from lightning_kd.losses.checks import check_map_layers, check_maps
from lightning_kd.losses.tensors import add_up_halving, pair_up, pool_to_smaller, upcast
from lightning_kd.projectors import batch_norm_connector
from lightning_kd.schedules import Scalar


def ofd_loss(student: Tensor, teacher: Tensor, margin: Tensor) -> Tensor:
    r"""Squared distance between two maps before their activation, where the difference matters (partial L2, OFD).

    .. math::
        L = \frac{1}{B} \sum_{b,c,n} (s - t')^2 \; [t > 0 \text{ or } s > t'], \qquad t' = \max(t, m_c)

    Where the teacher's activation lets nothing pass, the student need only stay below the teacher's response, or below
    the margin of the channel, a negative number. Follows the authors' code: a sum over channels and positions, and the
    mean over the batch. Of two maps of unequal height or width, the larger is average-pooled to the smaller, each axis
    for itself.

    Shape:
        - student: :math:`(B, C, H_S, W_S)`, teacher: :math:`(B, C, H_T, W_T)`, margin: :math:`(C,)`.
        - Output: scalar :math:`()`, >= 0.

    Args:
        student: Map to train, already brought to the teacher's channels, before the activation.
        teacher: Map to imitate, before the activation; no gradient reaches it.
        margin: For each channel, below which response it no longer matters how negative it is, <= 0; the authors take
            the mean of the teacher's negative responses.

    Raises:
        ValueError: If a map is not 4-D, or batch sizes or channels differ.

    Example:
        >>> student = torch.tensor([[[[2.0, 0.5, -3.0, -3.0]]]])
        >>> teacher = torch.tensor([[[[-5.0, -0.5, -0.5, 1.0]]]])
        >>> ofd_loss(student, teacher, torch.tensor([-1.0]))  # 2 to the margin -1, .5 to -.5, nothing, -3 to 1
        tensor(26.)

    Reference:
        Heo et al., "A Comprehensive Overhaul of Feature Distillation", ICCV 2019, arXiv:1904.01866.
    """
    check_maps("ofd_loss", tuple(student.shape), tuple(teacher.shape))
    if student.shape[:2] != teacher.shape[:2] or margin.numel() != teacher.shape[1]:
        raise ValueError(
            f"ofd_loss: expected maps of one batch with equal channels and a margin for each, got student "
            f"{tuple(student.shape)}, teacher {tuple(teacher.shape)} and margin {tuple(margin.shape)}; bring the "
            "student to the teacher's channels with a projector."
        )
    student, teacher = pool_to_smaller(upcast(student), upcast(teacher.detach()))
    above = student - torch.maximum(teacher, upcast(margin.detach()).reshape(1, -1, 1, 1).to(teacher.dtype))
    matters = (above.detach() > 0) | (teacher > 0)
    hidden = 0.0 * teacher.sum()  # the margin alone would hide minus infinity
    return (above * matters.to(above.dtype)).square().sum() / max(len(student), 1) + hidden


@final
class OFDLoss(DistillationLoss):
    """Make the student's features those of the teacher before the activation, where it lets them pass (OFD).

    Best for convolutional networks with batch normalisation before a ReLU. A trained 1x1 convolution with batch
    normalisation brings each student map to the teacher's channels; the losses of several pairs are added, the last
    with weight 1, the one before with 1/2, then 1/4. Stronger than plain hints, because the student need not copy how
    negative a response is that nobody sees; but it needs layers before the activation.

    The margin of a channel is the mean negative response of the teacher. If the named layer is a batch normalisation,
    or a sequence that ends with one, the margin is computed as in the authors' code: from a normal distribution whose
    mean and deviation are the offset and scale of the batch normalisation. Of the sum of a residual block these are
    those of its own last batch normalisation, such as ``bn2``, as in the authors' code. For any other layer, and for a
    teacher whose weights change, as that of ``EMATeacher``, it is the mean of the negative responses that were seen in
    training, over all processes.

    Args:
        student: Dotted name of the student layer to read, or a list of them, from the first to the last; by default the
            last value before an activation of every resolution. Of a residual block that is the sum of its branches,
            ``"<input of layer1.1.relu>"``: what the activation gets last in its block.
        teacher: Dotted name of the teacher layer for each student layer, in the same order.
        layout: Order of the layers' axes, such as ``"NHWC"``, or that of each layer by its name; by default it is found
            at set-up.
        weight: Factor of this part in the total loss, >= 0. Published recipes use 0.001.

    Raises:
        ValueError: If the layers do not pair up, or the weight is negative or not finite.
    """

    reads = "pre_activation_maps"
    needs_maps = True
    replicated_buffers = ("margin", "count")
    margin: Tensor
    count: Tensor

    def __init__(
        self, student: Layers = None, teacher: Layers = None, *, layout: Layout = None, weight: Scalar = 1.0
    ) -> None:
        super().__init__(student, teacher, layout=layout, weight=weight)
        self.projectors = nn.ModuleList()
        self._known: dict[str, Tensor] = {}

    def see_layers(self, student_layers: Mapping[str, nn.Module], teacher_layers: Mapping[str, nn.Module]) -> None:
        """Read the margins off the batch normalisations among the teacher's layers."""
        norms = {
            name: _final_norm(layer) if activation_in(name) is None else _own_norm(layer)
            for name, layer in teacher_layers.items()
            if name in self.teacher_layers
        }
        self._known = {name: _normal_margin(norm) for name, norm in norms.items() if norm is not None}

    def build(self, student_shapes: Mapping[str, Shape], teacher_shapes: Mapping[str, Shape]) -> None:
        """Make a projector for each pair of layers, and the margins.

        Args:
            student_shapes: Shape of each named student layer.
            teacher_shapes: Shape of each named teacher layer.

        Raises:
            ValueError: If a layer returns no map.
        """
        check_map_layers(self, student_shapes, teacher_shapes)
        teacher_layer_shapes = [teacher_shapes[name] for name in self.teacher_layers]
        for name, shape in zip(self.student_layers, teacher_layer_shapes, strict=True):
            self.projectors.append(batch_norm_connector(student_shapes[name], shape))
        self._widths = [shape[1] for shape in teacher_layer_shapes]
        named = zip(self.teacher_layers, self._widths, strict=True)
        self.register_buffer("margin", torch.cat([self._known.get(name, torch.zeros(width)) for name, width in named]))
        self.register_buffer("count", torch.zeros(sum(self._widths), dtype=torch.long))

    def forward(self, student: Tensor | list[Tensor], teacher: Tensor | list[Tensor]) -> Tensor:
        """Compute the unweighted loss, see ``ofd_loss``; the sum over several pairs, each half of the next."""
        pairs = pair_up(student, teacher)
        if self.training and len(self._known) < len(pairs):
            self._learn_margins([features for _, features in pairs])
        parts = zip(self.projectors, pairs, self.margin.split(self._widths), strict=True)
        return add_up_halving([ofd_loss(projector(s), t, margin) for projector, (s, t), margin in parts])

    @torch.no_grad()
    def _learn_margins(self, teachers: Sequence[Tensor]) -> None:
        """Take a batch into the mean negative response of every channel whose margin is not known otherwise."""
        sums, counts = torch.zeros_like(self.margin), torch.zeros_like(self.count)
        places = zip(self.teacher_layers, teachers, sums.split(self._widths), counts.split(self._widths), strict=True)
        for name, features, total, number in places:
            if name not in self._known:
                total += upcast(features).clamp_max(0.0).sum((0, 2, 3))
                number += (features < 0).sum((0, 2, 3))
        if is_distributed():
            dist.all_reduce(sums)
            dist.all_reduce(counts)
        self.count += counts
        self.margin += (sums - counts * self.margin) / self.count.clamp_min(1)


_RARE = 0.001
_FAR = -3.0


def _final_norm(layer: nn.Module) -> BatchNorm | None:
    """Return the batch normalisation whose output is the layer's; of other layers only a sequence has a known order."""
    while isinstance(layer, nn.Sequential) and len(layer):
        layer = layer[-1]
    return layer if isinstance(layer, BatchNorm) else None


def _own_norm(block: nn.Module) -> BatchNorm | None:
    """Return the last of a block's own batch normalisations, ``None`` if one of them may be that of the shortcut.

    Those of the branch are numbered, as ``bn1`` and ``bn2``; one by another name may be of the shortcut.
    """
    found = {name: part for name, part in block.named_children() if isinstance(part, BatchNorm)}
    names = {name.rstrip("0123456789") for name in found}
    of_branch = len(names) == 1 and (len(found) > 1 or names <= {"bn", "norm"})
    return list(found.values())[-1] if of_branch else None


def _normal_margin(norm: BatchNorm) -> Tensor:
    """Mean of the negative values of normal distributions, three deviations below 0 where they are rare."""
    if not norm.affine:
        return torch.full((norm.num_features,), -math.sqrt(2.0 / math.pi))
    mean, deviation = norm.bias.detach().double().cpu(), norm.weight.detach().double().cpu().abs()
    z = mean / deviation.clamp_min(torch.finfo(torch.float64).tiny)
    below = torch.special.ndtr(-z)
    density = torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi)
    margin = mean - deviation * density / below.clamp_min(_RARE)
    return torch.where(below > _RARE, margin, _FAR * deviation).float()
