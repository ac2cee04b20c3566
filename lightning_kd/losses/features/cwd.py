"""Channel-wise distillation (CWD): make each channel of the student fire where the teacher's does."""

from typing import final

import torch.nn.functional as F
from torch import Tensor, nn

from lightning_kd.losses.base import Layers, Layout, Shape
from lightning_kd.losses.checks import check_maps, check_positive, check_same_shape
from lightning_kd.losses.pairs import LayerPairLoss
from lightning_kd.losses.tensors import exact_if_small, pool_to_smaller, upcast_alike, wide
from lightning_kd.projectors import Projector, check_template, projector_between
from lightning_kd.schedules import Scalar


def cwd_loss(student: Tensor, teacher: Tensor, *, temperature: float = 4.0) -> Tensor:
    r"""Divergence of where each channel of a map fires from where the teacher's channel does (CWD).

    .. math::
        L = \frac{T^2}{BC} \sum_{b,c} \sum_{n} p^t_{bcn} \log \frac{p^t_{bcn}}{p^s_{bcn}}, \qquad
        p_{bc} = \mathrm{softmax}_n(a_{bcn} / T)

    over the :math:`N = HW` positions. Each channel of each sample is a distribution over the positions; for ``kd_loss``
    each position is one over the channels. A number that is added to a channel makes no difference. Follows the
    authors' code, which is the paper's formula. Of two maps of unequal height or width, the larger is average-pooled
    to the smaller first, each axis for itself; the authors' maps are of one size.

    Shape:
        - student: :math:`(B, C, H_S, W_S)`, teacher: :math:`(B, C, H_T, W_T)`.
        - Output: scalar :math:`()`, >= 0.

    Args:
        student: Map to train, such as the class scores of all pixels, already projected to the teacher's channels.
        teacher: Map to imitate; no gradient reaches it.
        temperature: Softening of both distributions, > 0, no unit. A higher one looks at more positions. The authors'
            recipe uses 4, mmrazor's use 1.

    Raises:
        ValueError: If a map is not 4-D, batch sizes or channels differ, or ``temperature`` is not positive.

    Example:
        >>> import torch
        >>> student, teacher = torch.tensor([[[[0.0, 0.0]]]]), torch.tensor([[[[2.0, 0.0]]]])
        >>> cwd_loss(student, teacher, temperature=2.0)  # (.5, .5) against (.731, .269); 4 * KL
        tensor(0.4438)

    Reference:
        Shu et al., "Channel-wise Knowledge Distillation for Dense Prediction", ICCV 2021, arXiv:2011.13256.
    """
    check_positive("cwd_loss", temperature=temperature)
    check_maps("cwd_loss", tuple(student.shape), tuple(teacher.shape))
    student, teacher = upcast_alike(student, teacher.detach())
    if student.shape[:2] == teacher.shape[:2]:
        student, teacher = pool_to_smaller(student, teacher)
    check_same_shape("cwd_loss", student, teacher, "bring the student to the teacher's channels with a projector")
    if student.numel() == 0:
        return student.sum() * 0.0
    channels = student.shape[0] * student.shape[1]
    divergence = exact_if_small(
        _divergence(student, teacher, temperature),
        channels,
        temperature,
        lambda: _divergence(wide(student), wide(teacher), temperature),
    )
    return divergence * (temperature**2 / channels)


@final
class CWDLoss(LayerPairLoss):
    """Make each channel of the student fire at the positions where the teacher's does (channel-wise distillation, CWD).

    Best for dense prediction: segmentation, depth, detection. It compares where each class or feature is seen in the
    picture, not what is seen at each pixel. On class scores name the layer that makes them, such as
    ``CWDLoss("classifier", "classifier")``, or the output, ``CWDLoss("<output>", "<output>")``, of a network with
    several ``"<output.out>"``. A softmax over the positions of a small map, such as the last of a classifier, says
    little. The losses of several pairs are added.

    Args:
        student: Dotted name of the student layer to read, or a list of them; by default its last feature map.
        teacher: Dotted name of the teacher layer for each student layer, in the same order.
        temperature: Softening of both distributions, > 0, no unit. A higher one looks at more positions. The authors'
            recipe uses 4, mmrazor's use 1.
        layout: Order of the layers' axes, such as ``"NHWC"``, or that of each layer by its name; by default it is found
            at set-up.
        weight: Factor of this part in the total loss, >= 0. Published recipes use 3 on class scores at temperature 4,
            5 there at temperature 1, and 10 on each level of a detector at temperature 1.
        projector: Which projector to copy for each pair, not yet built; by default none between equal widths, else a
            1x1 convolution without offset.

    Raises:
        ValueError: If ``temperature`` is not positive, the layers do not pair up, the projector is built already, or
            the weight is negative or not finite.
    """

    reads = "map"
    needs_maps = True
    per_pair = ("projectors",)

    def __init__(
        self,
        student: Layers = None,
        teacher: Layers = None,
        *,
        temperature: Scalar = 4.0,
        layout: Layout = None,
        weight: Scalar = 1.0,
        projector: Projector | None = None,
    ) -> None:
        super().__init__(student, teacher, layout=layout, weight=weight)
        check_positive("CWDLoss", temperature=temperature)
        check_template("CWDLoss", projector)
        self.temperature = temperature
        self.projector = projector
        self.projectors = nn.ModuleList()

    def build_pair(self, student: Shape, teacher: Shape) -> tuple[nn.Module]:
        """Make the projector of one pair: a copy of the given one, or the one that suits the channels."""
        return (projector_between(self.projector, student, teacher, bias=False),)

    def compare(self, student: Tensor, teacher: Tensor, projector: nn.Module) -> Tensor:
        """Compute the unweighted loss of one pair of maps, see ``cwd_loss``."""
        return cwd_loss(projector(student), teacher, temperature=self.now(self.temperature))


def _divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return the sum over all channels of all samples."""
    student, teacher = ((one / temperature).flatten(2).log_softmax(dim=2) for one in (student, teacher))
    return F.kl_div(student, teacher, reduction="sum", log_target=True)
