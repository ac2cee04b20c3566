"""Hidden states: make the student's vectors of each token those of the teacher."""

import copy
from typing import Literal, final, get_args

from torch import Tensor, nn

from lightning_kd.losses.base import LAYER_MAPS, Layers, Layout, Shape
from lightning_kd.losses.checks import check_same_shape
from lightning_kd.losses.pairs import LayerPairLoss
from lightning_kd.losses.tensors import unit, upcast
from lightning_kd.losses.tokens.selection import choose, number, sum_of_counting
from lightning_kd.projectors import IdentityProjector, Projector, check_template, default_projector, width
from lightning_kd.schedules import Scalar

Kind = Literal["mse", "cosine"]


def hidden_state_loss(student: Tensor, teacher: Tensor, *, kind: Kind = "mse", mask: Tensor | None = None) -> Tensor:
    r"""Distance of two hidden states, as a mean over the tokens that are no padding.

    .. math::
        L_{mse} = \frac{1}{N C} \sum_n \| s_n - t_n \|^2, \qquad
        L_{cosine} = \frac{1}{N} \sum_n \left( 1 - \frac{s_n \cdot t_n}{\| s_n \| \| t_n \|} \right)

    over the :math:`N` tokens that count and :math:`C` channels. A vector of length 0 has no direction, so its cosine
    is 0. Without a mask this is TinyBERT's distance, which keeps padding; with ``kind="cosine"`` it is DistilBERT's.

    Shape:
        - student, teacher: :math:`(B, T, C)`, or :math:`(N, C)`; equal shapes.
        - mask: :math:`(B, T)`.
        - Output: scalar :math:`()`, >= 0.

    Args:
        student: Hidden states to train, already projected to the teacher's width.
        teacher: Hidden states to imitate; no gradient reaches them.
        kind: Whether the squared distance is compared, or the direction alone.
        mask: Which tokens are no padding; the others do not count.

    Raises:
        ValueError: If the shapes do not match, or ``kind`` is unknown.

    Example:
        >>> import torch
        >>> student, teacher = torch.tensor([[[3.0, 4.0], [9.0, 9.0]]]), torch.tensor([[[3.0, 0.0], [0.0, 1.0]]])
        >>> hidden_state_loss(student, teacher, mask=torch.tensor([[1, 0]]))  # (0 + 16) / 2
        tensor(8.)
        >>> hidden_state_loss(student, teacher, kind="cosine", mask=torch.tensor([[1, 0]]))  # 1 - 3 / 5
        tensor(0.4000)

    Reference:
        Jiao et al., "TinyBERT", EMNLP Findings 2020, arXiv:1909.10351 (mse).
        Sanh et al., "DistilBERT", 2019, arXiv:1910.01108 (cosine).
    """
    _check_kind("hidden_state_loss", kind)
    check_same_shape("hidden_state_loss", student, teacher, "bring the student to the teacher's width with a projector")
    if student.ndim < 2:
        raise ValueError(
            f"hidden_state_loss: expected (B, T, C), got student {tuple(student.shape)} and teacher "
            f"{tuple(teacher.shape)}."
        )
    positions = student.shape[:-1]
    if mask is not None and mask.shape != positions:
        raise ValueError(
            f"hidden_state_loss: expected a mask of shape {tuple(positions)}, one for each token, got "
            f"{tuple(mask.shape)}."
        )
    counts = None if mask is None else mask.bool()
    ours, theirs = upcast(choose(student, counts)), upcast(choose(teacher.detach(), counts))
    values = _squares(ours, theirs) if kind == "mse" else _angles(ours, theirs)
    return sum_of_counting(values, counts) / number(counts, positions).clamp_min(1)


@final
class HiddenStateLoss(LayerPairLoss):
    """Make the student's hidden states those of the teacher, token by token.

    Padded tokens do not count. Where the widths differ, each pair gets a trained linear projector from the student's
    width to the teacher's; the distances of several pairs are added.

    Args:
        student: Dotted name of the student's block to read, such as ``"model.layers.3"``, or a list of them; or
            ``"uniform"``, ``"skip"`` or ``"last"`` alone, which pair the blocks of both networks by their depth; by
            default the last features before the logits.
        teacher: Dotted name of the teacher's block for each of the student's, in the same order.
        kind: Whether the squared distance is compared, or the direction alone.
        layout: Order of the layers' axes, such as ``"NLC"``, or that of each layer by its name; by default it is found
            at set-up.
        weight: Factor of this part in the total loss, >= 0. Published recipes use 1.
        projector: Which projector to copy for each pair, not yet built; by default none where the widths agree, else a
            linear one.

    Raises:
        ValueError: If the layers do not pair up, ``kind`` is unknown, the projector is built already, or the weight is
            negative or not finite.
    """

    reads = "embedding"
    per_pair = ("projectors",)
    masking = "pack"
    layer_maps = LAYER_MAPS

    def __init__(
        self,
        student: Layers = None,
        teacher: Layers = None,
        *,
        kind: Kind = "mse",
        layout: Layout = None,
        weight: Scalar = 1.0,
        projector: Projector | None = None,
    ) -> None:
        super().__init__(student, teacher, layout=layout, weight=weight)
        _check_kind("HiddenStateLoss", kind)
        check_template("HiddenStateLoss", projector)
        self.kind: Kind = kind
        self.projector = projector
        self.projectors = nn.ModuleList()

    def build_pair(self, student: Shape, teacher: Shape) -> tuple[nn.Module]:
        """Make the projector of one pair: a copy of the given one, or what the widths ask for."""
        tokens = [shape[1:2] if len(shape) == 3 else shape[2:] for shape in (student, teacher)]
        if len(student) != len(teacher) or len(student) < 2 or tokens[0] != tokens[1]:
            raise ValueError(
                f"expected hidden states of the same tokens, got student {student} and teacher {teacher}; name layers "
                "that see the same tokens."
            )
        if self.projector is not None:
            projector = copy.deepcopy(self.projector)
        else:
            projector = IdentityProjector() if width(student) == width(teacher) else default_projector(student, teacher)
        projector.build(student, teacher)
        return (projector,)

    def compare(self, student: Tensor, teacher: Tensor, projector: nn.Module) -> Tensor:
        """Compute the unweighted loss of one pair of hidden states, see ``hidden_state_loss``."""
        projected = projector(student)
        if projected.ndim == teacher.ndim == 4:  # maps: each position is a token
            projected, teacher = projected.movedim(1, -1), teacher.movedim(1, -1)
        return hidden_state_loss(projected, teacher, kind=self.kind)


def _squares(student: Tensor, teacher: Tensor) -> Tensor:
    return (student - teacher).square().mean(-1)


def _angles(student: Tensor, teacher: Tensor) -> Tensor:
    return 1 - (unit(student, -1) * unit(teacher, -1)).sum(-1)


def _check_kind(function: str, kind: str) -> None:
    if kind not in get_args(Kind):
        raise ValueError(f"{function}: expected kind to be one of {list(get_args(Kind))}, got {kind!r}.")
