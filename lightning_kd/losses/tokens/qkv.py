"""Relations of queries, keys and values (MiniLM): which tokens are alike to the student, as to the teacher."""

import math
from collections.abc import Mapping, Sequence
from typing import final

import torch
from torch import Tensor

from lightning_kd.capture.attention import Part
from lightning_kd.losses.base import Layers, Shape
from lightning_kd.losses.tensors import upcast
from lightning_kd.losses.tokens.blocks import ReadsAttention, no_attention
from lightning_kd.losses.tokens.sentences import Reduction, check_reduction, divergence, mean_of_sentences
from lightning_kd.schedules import Scalar

_PLACE = {"Q": 0, "K": 1, "V": 2}


def qkv_relation_loss(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    *,
    mask: Tensor | None = None,
    relation_heads: int,
    relations: Mapping[str, float],
    reduction: Reduction = "sentences",
) -> Tensor:
    r"""Divergence of how tokens relate to one another by their queries, keys and values (MiniLM).

    Each of :math:`Q, K, V` of all heads together is cut into :math:`A` relation heads of :math:`d = C / A` channels,

    .. math::
        R_{XY} = \mathrm{softmax}\left( \frac{X Y^\top}{\sqrt{d}} \right), \qquad
        L = \sum_{XY} w_{XY} \frac{1}{A N} \sum_{a, n} KL(R^t_{XY, an} \,\|\, R^s_{XY, an})

    as a mean over the relation heads and the :math:`N` tokens of a sentence, and then over sentences, as in the
    authors' code. Padded tokens count neither as rows nor as columns, on whichever side they are. Widths and numbers
    of attention heads of the two networks may differ. MiniLM v2 has the relations QQ, KK and VV; v1 has QK and VV, with
    as many relation heads as attention heads.

    Shape:
        - student, teacher: queries, keys and values :math:`(B, T, C)` each, before they are split into heads; the
          widths :math:`C` may all differ, as long as ``relation_heads`` divides them.
        - mask: :math:`(B, T)`.
        - Output: scalar :math:`()`, >= 0.

    Args:
        student: The student's queries, keys and values, to train.
        teacher: The teacher's queries, keys and values; no gradient reaches them.
        mask: Which tokens are no padding; the others do not count.
        relation_heads: Number of relation heads, which divides every width.
        relations: Weight of each relation by its name: one of Q, K and V, and another or the same.
        reduction: Whether the mean is taken over all tokens at once, or for each sentence and then over sentences.

    Raises:
        ValueError: If the shapes do not match, a relation is unknown, or the relation heads do not divide a width.

    Example:
        >>> zero, one = torch.zeros(1, 2, 1), torch.tensor([[[1.0], [0.0]]])
        >>> loss = qkv_relation_loss((zero,) * 3, (one,) * 3, relation_heads=1, relations={"VV": 2.0})
        >>> loss  # the first row is (.731, .269) against (.5, .5), the second is equal; 2 / 2 rows
        tensor(0.1109)

    Reference:
        Wang et al., "MiniLM", NeurIPS 2020, arXiv:2002.10957 (v1).
        Wang et al., "MiniLMv2", ACL Findings 2021, arXiv:2012.15828 (v2).
    """
    _check_relations("qkv_relation_loss", relation_heads, relations, reduction)
    if len(student) != 3 or len(teacher) != 3:
        raise ValueError(
            f"qkv_relation_loss: expected queries, keys and values, got {len(student)} tensors of the student and "
            f"{len(teacher)} of the teacher."
        )
    shapes = [[tuple(one.shape) for one in side] for side in (student, teacher)]
    _check_shapes("qkv_relation_loss", shapes[0], shapes[1], relation_heads, relations)
    if mask is not None and mask.shape != student[0].shape[:2]:
        raise ValueError(
            f"qkv_relation_loss: expected a mask (B, T) of the tokens {shapes[0][0]}, got {tuple(mask.shape)}."
        )
    used = {_PLACE[one] for name in relations for one in name}
    ours = {i: _heads(student[i], mask, relation_heads) for i in used}
    theirs = {i: _heads(teacher[i].detach(), mask, relation_heads) for i in used}
    total = None
    for name, weight in relations.items():
        rows, columns = (_PLACE[one] for one in name)
        log_q, log_p = (_log_relation(side[rows], side[columns], mask) for side in (ours, theirs))
        value = weight * mean_of_sentences(divergence(log_p, log_q).mean(1), mask, reduction)
        total = value if total is None else total + value
    assert total is not None
    return total


@final
class QKVRelationLoss(ReadsAttention):
    """Make the relations of the student's queries, keys and values those of the teacher (MiniLM).

    Best for transformers of other widths and numbers of heads than the teacher's: nothing is projected. One pair of
    blocks is enough, the last of each; for a large teacher one before its last. Padded tokens do not count.

    Of a block its queries, keys and values are those that its attention gets: through Hugging Face's interface, in
    ``nn.MultiheadAttention``, or where its own code calls ``torch.nn.functional.scaled_dot_product_attention``, as
    models of timm do. So fused projections and groups of heads need nothing more, and queries and keys of rotary models
    are those after the rotation.

    Args:
        student: Dotted name of the student's block, such as ``"blocks.11"``; or the names of the three modules
            that return its queries, keys and values (B, T, C), in this order, such as
            ``["encoder.layer.5.attention.self.query", ...]``; or ``"last"`` alone, the last block of both networks.
        teacher: The same of the teacher.
        relation_heads: Number of relation heads, which divides every width.
        relations: Weight of each relation by its name: one of Q, K and V, and another or the same.
        reduction: Whether the mean is taken over all tokens at once, or for each sentence and then over sentences.
        weight: Factor of this part in the total loss, >= 0.

    Raises:
        ValueError: If there is neither one name of each nor three, a relation is unknown, or the weight is negative or
            not finite.
    """

    reads_raw = True
    layer_maps = ("last",)

    def __init__(
        self,
        student: Layers,
        teacher: Layers = None,
        *,
        relation_heads: int,
        relations: Mapping[str, float],
        reduction: Reduction = "sentences",
        weight: Scalar = 1.0,
    ) -> None:
        super().__init__(student, teacher, weight=weight)
        for role, layers in (("student", self.student_layers), ("teacher", self.teacher_layers)):
            if len(layers) not in (1, 3):
                raise ValueError(
                    f"QKVRelationLoss: expected the name of one {role} block, or of three {role} modules, which return "
                    f"its queries, keys and values, got {list(layers)}."
                )
        self.relation_heads = relation_heads
        self.relations = dict(relations)
        self.reduction: Reduction = reduction
        _check_relations("QKVRelationLoss", relation_heads, self.relations, reduction)

    @property
    def parts(self) -> tuple[Part, ...]:
        """Return what is read of a block: its queries, keys and values."""
        return ("queries", "keys", "values")

    def build(self, student_shapes: Mapping[str, Shape], teacher_shapes: Mapping[str, Shape]) -> None:
        """Check that the relation heads divide every width.

        Args:
            student_shapes: Shape of each named student module's output.
            teacher_shapes: The same for the teacher.

        Raises:
            ValueError: If they do not, or the two sides cannot be compared; the message names the shapes.
        """
        for role, layers in (("student", self.student_layers), ("teacher", self.teacher_layers)):
            if len(layers) != 3:
                raise ValueError(f"QKVRelationLoss: the {role}'s {no_attention(layers[0])}")
        ours = [student_shapes[name] for name in self.student_layers]
        theirs = [(*ours[0][:1], *teacher_shapes[name][1:]) for name in self.teacher_layers]
        _check_shapes("QKVRelationLoss", ours, theirs, self.relation_heads, self.relations)

    def forward(self, student: list[Tensor], teacher: list[Tensor], mask: Tensor | None = None) -> Tensor:
        """Compute the unweighted loss of queries, keys and values, see ``qkv_relation_loss``."""
        return qkv_relation_loss(
            student,
            teacher,
            mask=mask,
            relation_heads=self.relation_heads,
            relations=self.relations,
            reduction=self.reduction,
        )


def _heads(value: Tensor, mask: Tensor | None, relation_heads: int) -> Tensor:
    """Return a value as (B, A, T, d), zero at padding, so that NaN there reaches nothing."""
    real = upcast(value if mask is None else torch.where(mask.bool().unsqueeze(-1), value, 0))
    heads: Tensor = real.unflatten(-1, (relation_heads, -1)).transpose(1, 2)
    return heads


def _log_relation(rows: Tensor, columns: Tensor, mask: Tensor | None) -> Tensor:
    with torch.autocast(rows.device.type, enabled=False):
        scores = rows @ columns.transpose(-1, -2) / math.sqrt(rows.shape[-1])
    lowest = torch.finfo(scores.dtype).min / 4
    if mask is not None:
        scores = scores.masked_fill(~mask.bool()[:, None, None, :], lowest)
    return torch.log_softmax(scores, -1).clamp_min(lowest)


def _check_relations(function: str, relation_heads: int, relations: Mapping[str, float], reduction: str) -> None:
    check_reduction(function, reduction)
    if not isinstance(relation_heads, int) or relation_heads < 1:
        raise ValueError(f"{function}: expected relation_heads to be a whole number >= 1, got {relation_heads!r}.")
    wrong = [name for name in relations if len(name) != 2 or not set(name) <= set(_PLACE)]
    if wrong or not relations:
        raise ValueError(f"{function}: expected relations such as {{'QQ': 1.0, 'KV': 0.5}}, got {dict(relations)}.")
    bad = {name: weight for name, weight in relations.items() if not 0.0 < weight < float("inf")}
    if bad:
        raise ValueError(f"{function}: expected a weight > 0 for every relation, got {bad}; leave the others out.")


def _check_shapes(
    function: str,
    student: Sequence[Shape],
    teacher: Sequence[Shape],
    relation_heads: int,
    relations: Mapping[str, float],
) -> None:
    got = f"student {', '.join(map(str, student))} and teacher {', '.join(map(str, teacher))}"
    if any(len(shape) != 3 or shape[:2] != student[0][:2] for shape in (*student, *teacher)):
        raise ValueError(
            f"{function}: expected queries, keys and values (B, T, C) of the same tokens, before they are split into "
            f"heads, got {got}."
        )
    used = {one for name in relations for one in name}
    widths = {side[_PLACE[one]][2] for side in (student, teacher) for one in used}
    if any(size % relation_heads for size in widths):
        raise ValueError(
            f"{function}: {relation_heads} relation heads do not divide the widths {sorted(widths)}, got {got}; choose "
            f"a divisor of {math.gcd(*widths)}."
        )
    for name in relations:
        for side in (student, teacher):
            first, second = (side[_PLACE[one]][2] for one in name)
            if first != second:
                raise ValueError(
                    f"{function}: the relation {name} multiplies widths {first} and {second}, which differ as in "
                    f"grouped-query attention, got {got}; use {name[0] * 2} and {name[1] * 2}."
                )
