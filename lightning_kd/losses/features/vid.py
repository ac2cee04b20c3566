"""Variational information distillation (VID): make the student's features tell as much as they can of the teacher's."""

import math
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_kd.losses.base import Layers, Layout, Shape
from lightning_kd.losses.checks import check_positive
from lightning_kd.losses.pairs import LayerPairLoss
from lightning_kd.losses.tensors import pool_to_smaller, upcast, upcast_alike
from lightning_kd.projectors import width
from lightning_kd.schedules import Scalar, check_whole


def vid_loss(prediction: Tensor, target: Tensor, log_scale: Tensor, *, eps: float = 1e-5) -> Tensor:
    r"""Negative log-likelihood of the teacher's features under a Gaussian that the student predicts (VID).

    .. math::
        L = \frac{1}{2C} \sum_c \Big( \frac{\overline{(\mu - t)^2}_c}{\sigma_c^2} + \log \sigma_c^2 \Big), \qquad
        \sigma_c^2 = \log(1 + e^{a_c}) + \epsilon

    where a bar is the mean over samples and positions. It is smallest where the variance of every channel is its mean
    squared residual, and is negative where that is below :math:`1/e` throughout. Follows RepDistiller's code, which
    averages where the paper sums, and leaves out the constant :math:`\frac{1}{2} \log 2\pi`.

    Shape:
        - prediction, target: :math:`(B, C)`, :math:`(B, N, C)` or :math:`(B, C, H, W)`, equal.
        - log_scale: :math:`(C)`.
        - Output: scalar :math:`()`, >= :math:`\frac{1}{2} \log \epsilon`.

    Args:
        prediction: The teacher's features as predicted from the student's, :math:`\mu`.
        target: The teacher's features, :math:`t`; no gradient reaches them.
        log_scale: Parameter :math:`a` of every channel's variance.
        eps: Smallest variance, > 0.

    Raises:
        ValueError: If the shapes differ, ``log_scale`` is not of one number a channel, or ``eps`` is not positive.

    Example:
        >>> import torch
        >>> log_scale = torch.tensor([2.0]).expm1().log()  # a variance of 2
        >>> vid_loss(torch.tensor([[3.0], [1.0]]), torch.tensor([[1.0], [1.0]]), log_scale)  # (2 / 2 + log 2) / 2
        tensor(0.8466)

    Reference:
        Ahn et al., "Variational Information Distillation for Knowledge Transfer", CVPR 2019, arXiv:1904.05835.
    """
    check_positive("vid_loss", eps=eps)
    channels = 1 if target.ndim < 2 else width(tuple(target.shape))
    if target.ndim < 2 or prediction.shape != target.shape or log_scale.shape != (channels,):
        raise ValueError(
            "vid_loss: expected prediction and target of one shape, (B, C), (B, N, C) or (B, C, H, W), and a log_scale "
            f"(C,), got prediction {tuple(prediction.shape)}, target {tuple(target.shape)} and log_scale "
            f"{tuple(log_scale.shape)}; predict the teacher's channels with a regressor, and pool the larger map first."
        )
    if target.numel() == 0:
        return upcast(prediction).sum() * 0.0
    others = [axis for axis in range(target.ndim) if axis != (2 if target.ndim == 3 else 1)]
    with torch.autocast(device_type=target.device.type, enabled=False):
        squares = F.mse_loss(*upcast_alike(prediction, target.detach()), reduction="none").mean(others)
        variance = F.softplus(upcast(log_scale)) + eps
        return 0.5 * (squares / variance + variance.log()).mean()


@final
class VIDLoss(LayerPairLoss):
    """Make the student's features tell as much as they can of the teacher's (variational information, VID).

    Best for pairs of different width or architecture: a trained regressor, of three 1x1 convolutions or linear layers
    with ReLU between them, predicts the teacher's features from the student's, and channels that it cannot predict
    get a large variance and count for little. It costs the regressor's parameters and time, and the loss may be
    negative. Of two maps of unequal height or width the larger is average-pooled to the smaller, before the
    regressor. The losses of several pairs are added.

    Args:
        student: Dotted name of the student layer to read, or a list of them; by default its last map of every
            resolution.
        teacher: Dotted name of the teacher layer for each student layer, in the same order.
        hidden_channels: Width of the regressor between its layers, >= 1; by default the teacher's.
        initial_variance: Variance of every channel at the start, > ``eps``. Published recipes use 5.
        eps: Smallest variance, > 0.
        layout: Order of the layers' axes, such as ``"NHWC"``, or that of each layer by its name; by default it is found
            at set-up.
        weight: Factor of this part in the total loss, >= 0. Published recipes use 1.

    Raises:
        ValueError: If a number is out of its range, or the layers do not pair up.
    """

    reads = "maps"
    masking = "pack"
    per_pair = ("regressors", "log_scales")

    def __init__(
        self,
        student: Layers = None,
        teacher: Layers = None,
        *,
        hidden_channels: int | None = None,
        initial_variance: float = 5.0,
        eps: float = 1e-5,
        layout: Layout = None,
        weight: Scalar = 1.0,
    ) -> None:
        super().__init__(student, teacher, layout=layout, weight=weight)
        check_positive("VIDLoss", eps=eps, initial_variance=initial_variance)
        if initial_variance <= eps:
            raise ValueError(f"VIDLoss: expected initial_variance > eps, got {initial_variance} and {eps}.")
        if hidden_channels is not None:
            check_whole("VIDLoss", "hidden_channels", hidden_channels, 1)
        self.hidden_channels = hidden_channels
        self.initial_variance = initial_variance
        self.eps = eps
        self.regressors = nn.ModuleList()
        self.log_scales = nn.ParameterList()

    def build_pair(self, student: Shape, teacher: Shape) -> tuple[nn.Module, nn.Parameter]:
        """Make the regressor and the variances of one pair."""
        _check_pair(student, teacher)
        student_width, teacher_width = width(student), width(teacher)
        hidden = self.hidden_channels or teacher_width
        regressor = _regressor(student_width, hidden, teacher_width, of_maps=len(student) == 4)
        excess = self.initial_variance - self.eps
        log_scale = excess + math.log(-math.expm1(-excess))  # the inverse of softplus
        return regressor, nn.Parameter(torch.full((teacher_width,), log_scale))

    def compare(self, student: Tensor, teacher: Tensor, regressor: nn.Module, log_scale: Tensor) -> Tensor:
        """Compute the unweighted loss of one pair of features, see ``vid_loss``."""
        if student.ndim == teacher.ndim == 4:
            student, teacher = pool_to_smaller(student, teacher)
        return vid_loss(regressor(student), teacher, log_scale, eps=self.eps)


def _regressor(student: int, hidden: int, teacher: int, of_maps: bool) -> nn.Sequential:
    def layer(channels: int, to: int) -> nn.Module:
        return nn.Conv2d(channels, to, 1, bias=False) if of_maps else nn.Linear(channels, to, bias=False)

    return nn.Sequential(layer(student, hidden), nn.ReLU(), layer(hidden, hidden), nn.ReLU(), layer(hidden, teacher))


def _check_pair(student: Shape, teacher: Shape) -> None:
    tokens_differ = len(student) == len(teacher) == 3 and student[1] != teacher[1]
    if len(student) != len(teacher) or len(student) not in (2, 3, 4) or tokens_differ:
        raise ValueError(
            "expected features (B, C), (B, N, C) or (B, C, H, W), both of the same kind and of as many tokens, "
            f"got student {student} and teacher {teacher}; name layers that match."
        )
