"""Attention transfer (AT): make the student look where the teacher looks."""

import math
from collections.abc import Iterator
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_kd.losses.base import DistillationLoss, Layers, Layout, StepTensors
from lightning_kd.losses.checks import check_maps, check_positive, check_same_batch
from lightning_kd.losses.pairs import LayerPairLoss
from lightning_kd.losses.tensors import in_range, pool_to_smaller, unit, upcast_alike, zero_of
from lightning_kd.schedules import Scalar


def attention_transfer_loss(student: Tensor, teacher: Tensor, *, p: float = 2.0) -> Tensor:
    r"""Mean squared distance between the attention maps of two feature maps, each of length one (AT).

    .. math::
        L = \frac{1}{BN} \sum_{b,n} \big( \hat q(S)_{bn} - \hat q(T)_{bn} \big)^2, \qquad
        q(A)_{bn} = \frac{1}{C} \sum_c |A_{bcn}|^p, \quad \hat q = q / \lVert q \rVert_2

    over the :math:`N = HW` positions. Follows RepDistiller's code; the paper sums norms instead of averaging squares,
    and like the paper we raise the absolute value, where that code lets an odd ``p`` keep signs. Of two maps of unequal
    height or width, the larger is average-pooled to the smaller first, each axis for itself.

    Shape:
        - student: :math:`(B, C_S, H_S, W_S)`, teacher: :math:`(B, C_T, H_T, W_T)`; only the batch must agree.
        - Output: scalar :math:`()`, in :math:`[0, 2/N]`.

    Args:
        student: Feature map to train.
        teacher: Feature map to imitate; no gradient reaches it.
        p: Exponent of the absolute activation, > 0. The paper uses 2.

    Raises:
        ValueError: If a map is not 4-D, the batch sizes differ, or ``p`` is not positive.

    Example:
        >>> import torch
        >>> student, teacher = torch.tensor([[[[3.0, 4.0]]]]), torch.tensor([[[[-8.0, 6.0]]]])
        >>> attention_transfer_loss(student, teacher, p=1.0)  # (.6, .8) against (.8, .6)
        tensor(0.0400)

    Reference:
        Zagoruyko & Komodakis, "Paying More Attention to Attention", ICLR 2017, arXiv:1612.03928.
    """
    check_positive("attention_transfer_loss", p=p)
    check_maps("attention_transfer_loss", tuple(student.shape), tuple(teacher.shape))
    check_same_batch("attention_transfer_loss", student, teacher)
    student, teacher = upcast_alike(student, teacher.detach())
    if student.numel() == 0:
        return zero_of(student)
    student, teacher = pool_to_smaller(student, teacher)
    return F.mse_loss(_attention(student, p), _attention(teacher, p))


@final
class ATLoss(LayerPairLoss):
    """Make the student look where the teacher looks (attention transfer, AT).

    Best for convolutional networks of one family: it has no parameters of its own and does not ask for equal widths,
    but it sees only where the activations are strong, not what they are. The losses of several pairs are added.

    Args:
        student: Dotted name of the student layer to read, or a list of them; by default its last map of every
            resolution.
        teacher: Dotted name of the teacher layer for each student layer, in the same order.
        p: Exponent of the absolute activation, > 0. The paper uses 2.
        layout: Order of the layers' axes, such as ``"NHWC"``, or that of each layer by its name; by default it is found
            at set-up.
        transformers: Whether transformers whose attention matrices can be read are compared by
            ``AttentionMatrixLoss("uniform")`` instead, with this weight. Set-up finds out and says so. The strategy
            ``ATTENTION_BASED`` sets it if it is given no option but the weight. It counts where no layers are named.
        weight: Factor of this part in the total loss, >= 0. Published recipes use 1000, and 1 for attention matrices.

    Raises:
        ValueError: If ``p`` is not positive, the layers do not pair up, or the weight is negative or not finite.
    """

    reads = "maps"
    needs_maps = True
    masking = "rescale"

    def __init__(
        self,
        student: Layers = None,
        teacher: Layers = None,
        *,
        p: float = 2.0,
        layout: Layout = None,
        transformers: bool = False,
        weight: Scalar = 1.0,
    ) -> None:
        super().__init__(student, teacher, layout=layout, weight=weight)
        check_positive("ATLoss", p=p)
        self.p = p
        self.transformers = transformers
        self._instead: dict[str, DistillationLoss] = {}  # a dictionary, for it is no part of this module

    @property
    def instead(self) -> DistillationLoss | None:
        """The loss that set-up has chosen for transformers, ``None`` if maps are compared."""
        return self._instead.get("loss")

    def stand_aside_for(self, loss: DistillationLoss | None) -> None:
        """Let another loss, if any, be evaluated in the place of this one, which keeps its name and weight."""
        self._instead = {} if loss is None else {"loss": loss}

    def leaves(self) -> Iterator[tuple[str, DistillationLoss]]:
        """Yield the loss that reads layers: this one, or that which set-up has chosen for transformers."""
        yield "", self.instead or self

    def evaluate(self, step: StepTensors) -> Tensor:
        """Return the unweighted loss of a step, by the loss that was chosen for transformers if one was."""
        if self.instead is None:
            return super().evaluate(step)
        value = self.instead.evaluate(step)
        self.counted = self.instead.counted
        return value

    def compare(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Compute the unweighted loss of one pair of maps, see ``attention_transfer_loss``."""
        return attention_transfer_loss(student, teacher, p=self.p)


def _attention(features: Tensor, p: float) -> Tensor:
    features = in_range(features, 2 * math.ceil(p), dim=(1, 2, 3))
    if p < 1.0:  # the slope of such a power is infinite at 0
        features = features.masked_fill(features == 0, torch.finfo(features.dtype).tiny)
    energy = features.square() if p == 2.0 else features.abs().pow(p)
    return unit(energy.mean(dim=1).flatten(1), dim=1)
