"""Activation boundaries (AB): make the student's neurons fire for the samples for which the teacher's do."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, final

import torch
from torch import Tensor, nn

from lightning_kd.losses.base import Layers, Layout, Shape
from lightning_kd.losses.checks import check_maps, check_positive, check_same_shape
from lightning_kd.losses.older import own_part
from lightning_kd.losses.pairs import LayerPairLoss
from lightning_kd.losses.stage import Stage
from lightning_kd.losses.tensors import add_up_halving, pool_to_smaller, upcast
from lightning_kd.projectors import batch_norm_connector
from lightning_kd.schedules import Scalar, Unit

Connector = Literal["differ", "all"]
_SCALE = 0.003


def ab_loss(student: Tensor, teacher: Tensor, *, margin: float = 1.0) -> Tensor:
    r"""Squared distance of the student's responses to the side of the boundary on which the teacher's are (AB).

    .. math::
        L = \frac{3}{1000 B} \sum_{b,c,n} \max(0, m - \mathrm{sign}(t) \, s)^2

    with sign :math:`-1` at 0: where the teacher's neuron fires, the student's is to exceed the margin, elsewhere to
    stay below its negative. How far the teacher's response is from the boundary does not matter. Follows the authors'
    code and RepDistiller's, with their factor 3/1000. Of two maps of unequal height or width, the larger is
    average-pooled to the smaller, each axis for itself.

    Shape:
        - student: :math:`(B, C, H_S, W_S)`, teacher: :math:`(B, C, H_T, W_T)`.
        - Output: scalar :math:`()`, >= 0.

    Args:
        student: Map to train, already brought to the teacher's channels, before the activation.
        teacher: Map whose signs are to be imitated, before the activation; no gradient reaches it.
        margin: How far beyond the boundary the student's responses are to be, > 0.

    Raises:
        ValueError: If a map is not 4-D, batch sizes or channels differ, or the margin is not positive.

    Example:
        >>> student, teacher = torch.tensor([[[[3.0, 0.0, 1.0]]]]), torch.tensor([[[[0.1, 8.0, -8.0]]]])
        >>> ab_loss(student, teacher)  # (0 + 1^2 + 2^2) * 3 / 1000
        tensor(0.0150)
        >>> ab_loss(student, teacher, margin=2.0)  # (0 + 2^2 + 3^2) * 3 / 1000
        tensor(0.0390)

    Reference:
        Heo et al., "Knowledge Transfer via Distillation of Activation Boundaries Formed by Hidden Neurons", AAAI 2019,
        arXiv:1811.03233.
    """
    check_positive("ab_loss", margin=margin)
    check_maps("ab_loss", tuple(student.shape), tuple(teacher.shape))
    student, teacher = upcast(student), upcast(teacher.detach())
    if student.shape[:2] == teacher.shape[:2]:
        student, teacher = pool_to_smaller(student, teacher)
    check_same_shape("ab_loss", student, teacher, "bring the student to the teacher's channels with a projector")
    sign = (teacher <= 0).to(student.dtype) * 2.0 - 1.0
    short = torch.relu(margin + sign * student)
    hidden = 0.0 * teacher.sum()  # the comparison alone would hide NaN and inf
    return short.square().sum() * (_SCALE / max(len(student), 1)) + hidden


@final
class ABLoss(LayerPairLoss):
    """Make the student's neurons fire where the teacher's do, before it learns its task (activation boundaries, AB).

    Best as an initialisation of a convolutional student with the teacher's stages: the published method first trains
    the student for a number of epochs with this loss alone, and then with the task's loss alone. Where the shapes of
    two maps differ, a trained 1x1 convolution with batch normalisation brings the student's to the teacher's channels;
    maps of equal shape are compared as they are, as in the authors' code and RepDistiller's. The losses of several
    pairs are added, the last with weight 1, the one before with 1/2, then 1/4. With ``stage_length=0`` there is no
    first stage, and the loss is one part beside the others throughout.

    Args:
        student: Dotted name of the student layer to read, or a list of them, from the first to the last; by default the
            last value before an activation of every resolution. Of a residual block that is the sum of its branches,
            ``"<input of layer1.1.relu>"``: what the activation gets last in its block.
        teacher: Dotted name of the teacher layer for each student layer, in the same order.
        margin: How far beyond the boundary the student's responses are to be, > 0.
        connector: Which pairs get the trained convolution: those whose shapes ``"differ"``, or ``"all"``. A checkpoint
            that holds one for a pair of equal shapes gets it back.
        stage_length: Number of epochs or steps that the first stage takes, >= 0; 0 trains with the task instead,
            ``None`` is a tenth of the run. Published recipes use 30 of 240 epochs.
        stage_unit: Whether to count epochs or optimizer steps.
        layout: Order of the layers' axes, such as ``"NHWC"``, or that of each layer by its name; by default it is found
            at set-up.
        weight: Factor of this part in the total loss, >= 0. Published recipes use 1.

    Raises:
        ValueError: If the layers do not pair up, or a number is out of its range.
    """

    reads = "pre_activation_maps"
    needs_maps = True
    per_pair = ("projectors",)

    def __init__(
        self,
        student: Layers = None,
        teacher: Layers = None,
        *,
        margin: float = 1.0,
        connector: Connector = "differ",
        stage_length: int | None = None,
        stage_unit: Unit = "epoch",
        layout: Layout = None,
        weight: Scalar = 1.0,
    ) -> None:
        super().__init__(student, teacher, layout=layout, weight=weight)
        check_positive("ABLoss", margin=margin)
        if connector not in ("differ", "all"):
            raise ValueError(f"ABLoss: expected connector 'differ' or 'all', got {connector!r}.")
        self.margin = margin
        self.connector: Connector = connector
        self.stage_length = stage_length
        self.stage_unit: Unit = stage_unit
        stage = Stage(stage_length, stage_unit, then_stops=True)
        self.stage = stage if stage_length != 0 else None
        self.projectors = nn.ModuleList()
        self.register_load_state_dict_pre_hook(_suit)  # type: ignore[no-untyped-call]

    def build_pair(self, student: Shape, teacher: Shape) -> tuple[nn.Module]:
        """Make the projector of one pair, where the shapes differ."""
        if self.connector == "differ" and student[1:] == teacher[1:]:
            return (nn.Identity(),)
        return (batch_norm_connector(student, teacher),)

    def compare(self, student: Tensor, teacher: Tensor, projector: nn.Module) -> Tensor:
        """Compute the unweighted loss of one pair of maps, see ``ab_loss``."""
        return ab_loss(projector(student), teacher, margin=self.margin)

    def combine(self, values: Sequence[Tensor]) -> Tensor:
        """Add the losses of several pairs, each with half of the weight of the next."""
        return add_up_halving(values)

    def suit(self, saved: Mapping[str, Tensor]) -> None:
        """Make the connectors that a checkpoint of the time when every pair had one holds, to go on with them.

        Args:
            saved: State of the loss in the checkpoint.
        """
        for i, projector in enumerate(self.projectors):
            weight = saved.get(f"projectors.{i}.conv.weight")
            if isinstance(projector, nn.Identity) and weight is not None:
                of, to = ((1, channels, 1, 1) for channels in (weight.shape[1], weight.shape[0]))
                with torch.random.fork_rng(devices=[]):
                    self.projectors[i] = batch_norm_connector(of, to).train(self.training)


def _suit(loss: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    assert isinstance(loss, ABLoss)
    loss.suit(own_part(state, prefix))
