"""Neuron selectivity transfer (NST): make the student's channels fire at the positions where the teacher's do."""

from typing import Any, Literal, cast, final

import torch
from torch import Tensor

from lightning_kd.losses.base import Layers, Layout
from lightning_kd.losses.checks import check_maps, check_positive, check_same_batch
from lightning_kd.losses.pairs import LayerPairLoss
from lightning_kd.losses.tensors import check_differentiated_once, pool_to_smaller, unit, wide, zero_of
from lightning_kd.schedules import Scalar

Kernel = Literal["polynomial", "linear", "gaussian"]
_SHORTEST = 1e-12
"""Shorter channels are not stretched to length one."""


def nst_loss(
    student: Tensor, teacher: Tensor, *, kernel: Kernel = "polynomial", bandwidth: float | None = None
) -> Tensor:
    r"""Squared maximum mean discrepancy between the channels of two feature maps (NST).

    .. math::
        L = \frac{1}{B} \sum_b \Big( \overline{k(t, t)} + \overline{k(s, s)} - 2\, \overline{k(s, t)} \Big)

    where a bar is the mean over all pairs of channels, each channel a vector over the positions and of length one.
    The kernel is :math:`\langle x, y \rangle^2` (polynomial), :math:`\langle x, y \rangle` (linear), or
    :math:`\exp(-|x - y|^2 / 2 \sigma^2)` (gaussian), with :math:`\sigma^2` the mean squared distance of student and
    teacher channels in the batch unless given. Follows RepDistiller's code, all three terms; the first has no gradient.
    Of two maps of unequal height or width, the larger is average-pooled to the smaller, each axis for itself.

    The polynomial kernel costs one product of the smaller side: with :math:`M = X^\top X / C` over the positions, the
    three terms are :math:`\lVert M_s - M_t \rVert_F^2`. It is computed in float64, which it needs near a match, and its
    gradient cannot be differentiated once more.

    Shape:
        - student: :math:`(B, C_S, H_S, W_S)`, teacher: :math:`(B, C_T, H_T, W_T)`; only the batch must agree.
        - Output: scalar :math:`()`, >= 0.

    Args:
        student: Feature map to train.
        teacher: Feature map to imitate; no gradient reaches it.
        kernel: Which kernel compares two channels.
        bandwidth: Deviation of the gaussian kernel, > 0; by default that of the batch, on several processes of each
            one's own. Give a number there to train as on one process.

    Raises:
        ValueError: If a map is not 4-D, the batch sizes differ, or the kernel or its bandwidth is not one of these.

    Example:
        >>> student, teacher = torch.tensor([[[[3.0, 4.0]]]]), torch.tensor([[[[2.0, 0.0]]]])
        >>> nst_loss(student, teacher)  # (.6, .8) against (1, 0): 1 + 1 - 2 * .36
        tensor(1.2800)
        >>> nst_loss(student, teacher, kernel="linear")  # 1 + 1 - 2 * .6
        tensor(0.8000)

    Reference:
        Huang & Wang, "Like What You Like: Knowledge Distill via Neuron Selectivity Transfer", 2017, arXiv:1707.01219.
    """
    _check_kernel("nst_loss", kernel, bandwidth)
    check_maps("nst_loss", tuple(student.shape), tuple(teacher.shape))
    check_same_batch("nst_loss", student, teacher)
    if student.numel() == 0:
        return zero_of(student)
    dtype = torch.promote_types(student.dtype, torch.float32)
    with torch.autocast(device_type=student.device.type, enabled=False):
        student_map, teacher_map = pool_to_smaller(student, teacher.detach())
        if kernel == "polynomial":
            value: Tensor = cast(Any, _SquaredProducts).apply(student_map.flatten(2), teacher_map.flatten(2))
            return value.to(dtype)
        maps = (student_map, teacher_map)
        student_channels, teacher_channels = (unit(wide(one).flatten(2), dim=2) for one in maps)
        if kernel == "linear":
            value = (student_channels.mean(dim=1) - teacher_channels.mean(dim=1)).square().sum(dim=1)
        else:
            value = _gaussian(student_channels, teacher_channels, bandwidth)
        return value.mean().to(dtype)


@final
class NSTLoss(LayerPairLoss):
    """Make the student's channels fire at the positions where the teacher's do (neuron selectivity transfer, NST).

    Best for feature maps of convolutional networks whose positions mean the same in both; the channels may differ in
    number and order. Has no parameters of its own. The losses of several pairs are added.

    Args:
        student: Dotted name of the student layer to read, or a list of them; by default its last map of every
            resolution.
        teacher: Dotted name of the teacher layer for each student layer, in the same order.
        kernel: Which kernel compares two channels.
        bandwidth: Deviation of the gaussian kernel, > 0; by default that of the batch, on several processes of each
            one's own. Give a number there to train as on one process.
        layout: Order of the layers' axes, such as ``"NHWC"``, or that of each layer by its name; by default it is found
            at set-up.
        weight: Factor of this part in the total loss, >= 0. Published recipes use 50.

    Raises:
        ValueError: If the bandwidth does not suit the kernel, the layers do not pair up, or the weight is negative or
            not finite.
    """

    reads = "maps"
    needs_maps = True
    masking = "zero"

    def __init__(
        self,
        student: Layers = None,
        teacher: Layers = None,
        *,
        kernel: Kernel = "polynomial",
        bandwidth: float | None = None,
        layout: Layout = None,
        weight: Scalar = 1.0,
    ) -> None:
        super().__init__(student, teacher, layout=layout, weight=weight)
        _check_kernel("NSTLoss", kernel, bandwidth)
        self.kernel: Kernel = kernel
        self.bandwidth = bandwidth

    def compare(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Compute the unweighted loss of one pair of maps, see ``nst_loss``."""
        return nst_loss(student, teacher, kernel=self.kernel, bandwidth=self.bandwidth)


class _SquaredProducts(torch.autograd.Function):
    """The polynomial kernel's loss of channels (B, C, N), with few passes over them: their gradient is by hand."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor) -> Tensor:
        (student_directions, lengths), (teacher_directions, _) = _directions(student), _directions(teacher)
        (batch, channels, positions), others = student_directions.shape, teacher_directions.shape[1]
        if positions < max(channels, others):
            teacher_products, transposed = teacher_directions.mT @ teacher_directions, student_directions.mT
            slope = torch.baddbmm(
                teacher_products, transposed, student_directions, beta=-1.0 / others, alpha=1.0 / channels
            )
            value = slope.square().sum()
            ctx.save_for_backward(student_directions, lengths, slope)
        else:
            everyone = torch.cat([student_directions, teacher_directions], dim=1)
            own, cross = (student_directions @ everyone.mT).split([channels, others], dim=2)
            other = teacher_directions @ teacher_directions.mT
            value = own.square().sum() / channels**2 + other.square().sum() / others**2
            value = value - 2.0 * cross.square().sum() / (channels * others)
            ctx.save_for_backward(everyone, lengths, torch.cat([own / channels, cross / -others], dim=2))
        return value / batch

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        check_differentiated_once("nst_loss")
        rows, lengths, slope = ctx.saved_tensors
        batch, channels = lengths.shape[:2]
        student_directions = rows[:, :channels]
        by_position = slope.shape[1] == slope.shape[2] == student_directions.shape[2]
        slope = student_directions @ slope if by_position else slope @ rows
        normalised = lengths > _SHORTEST  # a shorter channel is divided by a constant
        radial = (student_directions * slope).sum(dim=2, keepdim=True) * normalised
        slope = slope.addcmul(student_directions, radial, value=-1.0)
        return slope.mul_(grad * (4.0 / (batch * channels)) / lengths), None


def _directions(channels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the channels at length one, and the lengths that they are divided by."""
    rows = wide(channels)
    lengths = torch.linalg.vector_norm(rows, dim=2, keepdim=True).clamp_min(_SHORTEST)
    return rows / lengths, lengths


def _gaussian(student: Tensor, teacher: Tensor, bandwidth: float | None) -> Tensor:
    pairs = ((student, student), (teacher, teacher), (student, teacher))
    own, other, cross = (_squared_distances(x, y) for x, y in pairs)
    variance = cross.detach().mean().clamp_min(1e-12) if bandwidth is None else bandwidth**2
    own, other, cross = ((-distances / (2 * variance)).exp().mean(dim=(1, 2)) for distances in (own, other, cross))
    return own + other - 2 * cross


def _squared_distances(x: Tensor, y: Tensor) -> Tensor:
    lengths = x.square().sum(dim=2).unsqueeze(2) + y.square().sum(dim=2).unsqueeze(1)
    return (lengths - 2 * x @ y.mT).clamp_min(0.0)


def _check_kernel(function: str, kernel: str, bandwidth: float | None) -> None:
    if kernel not in ("polynomial", "linear", "gaussian"):
        raise ValueError(f"{function}: expected kernel 'polynomial', 'linear' or 'gaussian', got {kernel!r}.")
    if bandwidth is not None:
        check_positive(function, bandwidth=bandwidth)
        if kernel != "gaussian":
            raise ValueError(f"{function}: bandwidth has no effect on the {kernel} kernel; use kernel='gaussian'.")
