"""Masked generative distillation (MGD): make the student's features, with holes in them, give the teacher's whole."""

import math
from typing import Literal, final

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_kd.distributed.gather import is_distributed
from lightning_kd.losses.base import Layers, Layout, Shape
from lightning_kd.losses.checks import check_maps, check_same_shape
from lightning_kd.losses.pairs import LayerPairLoss
from lightning_kd.losses.tensors import pool_to_smaller, upcast_alike
from lightning_kd.projectors import Projector, check_template, projector_between, width
from lightning_kd.schedules import Scalar, check_constants

Masked = Literal["positions", "channels"]
_SHIFT = (math.sqrt(5.0) - 1.0) / 2.0
"""By this much, modulo 1, the numbers of one process are shifted from those of the one before."""


def mgd_loss(student: Tensor, teacher: Tensor) -> Tensor:
    r"""Squared distance of the features that were generated from the teacher's, summed over each sample (MGD).

    .. math::
        L = \frac{1}{B} \sum_{b,c,n} (g_{bcn} - t_{bcn})^2

    Follows the authors' code, without its factor alpha, which is the weight of ``MGDLoss``. The sum grows with the size
    of the map and its channels, so that alpha is small.

    Shape:
        - student, teacher: :math:`(B, C, H, W)`, equal.
        - Output: scalar :math:`()`, >= 0.

    Args:
        student: What was generated from the student's masked features.
        teacher: Features to imitate; no gradient reaches them.

    Raises:
        ValueError: If a map is not 4-D, or the shapes differ.

    Example:
        >>> student, teacher = torch.tensor([[[[1.0, 2.0]]], [[[0.0, 0.0]]]]), torch.tensor([[[[3.0, 1.0]]]] * 2)
        >>> mgd_loss(student, teacher)  # (4 + 1 + 9 + 1) / 2
        tensor(7.5000)

    Reference:
        Yang et al., "Masked Generative Distillation", ECCV 2022, arXiv:2205.01529.
    """
    check_maps("mgd_loss", tuple(student.shape), tuple(teacher.shape))
    check_same_shape("mgd_loss", student, teacher, "bring the student to the teacher's channels and size first")
    student, teacher = upcast_alike(student, teacher.detach())
    return F.mse_loss(student, teacher, reduction="sum") / max(len(student), 1)


@final
class MGDLoss(LayerPairLoss):
    """Make the student's features, with holes in them, give the teacher's whole (masked generative distillation, MGD).

    Best for detection and segmentation. A 1x1 convolution brings the student's map to the teacher's channels, where
    they differ. A part of it is set to zero, and a trained block, 3x3 convolution, ReLU, 3x3 convolution, generates the
    teacher's map from the rest. So each position must hold what its neighbours can be told from. The block costs
    18 times the square of the teacher's channels in parameters, for each pair, and is not exported. Of two maps of
    unequal height or width the larger is average-pooled to the smaller, before the block. The losses of several pairs
    are added.

    What is masked is drawn anew in every step, by torch's own state of random numbers, which a resumed fit takes up
    where it was. On several processes each draws for its own samples. Processes whose state is the same, as
    ``seed_everything`` makes it, mask other places nevertheless, since each shifts its numbers by its rank. So two
    processes do not give the numbers of one.

    Args:
        student: Dotted name of the student layer to read, or a list of them; by default its last feature map.
        teacher: Dotted name of the teacher layer for each student layer, in the same order.
        mask_ratio: Which part is set to zero, from 0 to 1, on average. Published recipes use 0.65 or 0.45 for detection
            and 0.75 for segmentation, all of positions, and 0.15 of channels for classification.
        masked: What is set to zero in each sample: positions, with all of their channels, or whole channels.
        layout: Order of the layers' axes, such as ``"NHWC"``, or that of each layer by its name; by default it is found
            at set-up.
        weight: Factor of this part in the total loss, >= 0; the paper's alpha. Published recipes use 2e-5 for one-stage
            detectors and segmentation, 5e-7 for two-stage detectors, and 7e-5 for classification.
        projector: Which projector to copy for each pair, not yet built; by default none between equal widths, else a
            1x1 convolution.

    Raises:
        ValueError: If ``mask_ratio`` or ``masked`` is none of these, the layers do not pair up, the projector is built
            already, or the weight is negative or not finite.
    """

    reads = "map"
    needs_maps = True
    in_a_plane = True
    per_pair = ("projectors", "generators")

    def __init__(
        self,
        student: Layers = None,
        teacher: Layers = None,
        *,
        mask_ratio: float = 0.65,
        masked: Masked = "positions",
        layout: Layout = None,
        weight: Scalar = 1.0,
        projector: Projector | None = None,
    ) -> None:
        super().__init__(student, teacher, layout=layout, weight=weight)
        check_constants("MGDLoss", mask_ratio=mask_ratio)
        if not 0.0 <= mask_ratio <= 1.0:
            raise ValueError(f"MGDLoss: expected mask_ratio from 0 to 1, got {mask_ratio}.")
        if masked not in ("positions", "channels"):
            raise ValueError(f"MGDLoss: expected masked 'positions' or 'channels', got {masked!r}.")
        check_template("MGDLoss", projector)
        self.mask_ratio = mask_ratio
        self.masked: Masked = masked
        self.projector = projector
        self.projectors = nn.ModuleList()
        self.generators = nn.ModuleList()

    def build_pair(self, student: Shape, teacher: Shape) -> tuple[nn.Module, nn.Module]:
        """Make the projector and the generating block of one pair."""
        return projector_between(self.projector, student, teacher), _generator(width(teacher))

    def compare(self, student: Tensor, teacher: Tensor, projector: nn.Module, generator: nn.Module) -> Tensor:
        """Compute the unweighted loss of one pair of maps, see ``mgd_loss``."""
        student, teacher = pool_to_smaller(student, teacher)
        aligned: Tensor = projector(student)
        return mgd_loss(generator(aligned * self._kept(aligned)), teacher)

    def _kept(self, features: Tensor) -> Tensor:
        """Draw what stays of a map: ones, and zeros where it is masked."""
        batch, channels, height, breadth = features.shape
        shape = (batch, 1, height, breadth) if self.masked == "positions" else (batch, channels, 1, 1)
        drawn = torch.rand(shape, device=features.device)
        if is_distributed():
            drawn = (drawn + dist.get_rank() * _SHIFT) % 1.0
        return (drawn <= 1.0 - self.mask_ratio).to(features.dtype)


def _generator(channels: int) -> nn.Sequential:
    first, second = (nn.Conv2d(channels, channels, kernel_size=3, padding=1) for _ in range(2))
    return nn.Sequential(first, nn.ReLU(), second)
