"""Attention matrices of transformers: make the student look at the tokens that the teacher looks at."""

import math
from collections.abc import Mapping
from typing import Literal, final, get_args

import torch
from torch import Tensor

from lightning_kd.capture.attention import Part
from lightning_kd.capture.heads import is_module
from lightning_kd.losses.base import LAYER_MAPS, Layers, Shape
from lightning_kd.losses.pairs import LayerPairLoss
from lightning_kd.losses.tensors import add_up, pair_up, upcast
from lightning_kd.losses.tokens.blocks import ReadsAttention, no_attention
from lightning_kd.losses.tokens.sentences import Reduction, check_reduction, divergence, mean_of_sentences
from lightning_kd.schedules import Scalar

Kind = Literal["scores", "probabilities", "scores_kl", "probabilities_kl"]
Heads = Literal["same", "mean"]
_MASKED = -100.0
"""Scores at or below are those of masked keys, to which models add a large negative number; they count as 0."""


def attention_matrix_loss(
    student: Tensor,
    teacher: Tensor,
    *,
    kind: Kind = "scores",
    mask: Tensor | None = None,
    heads: Heads = "same",
    reduction: Reduction = "tokens",
) -> Tensor:
    r"""Distance of two attention matrices of a transformer.

    ``"scores"`` and ``"probabilities"`` are mean squared distances over heads, queries and keys (TinyBERT compares
    scores, before the softmax). With ``"scores_kl"`` and ``"probabilities_kl"`` it is the divergence

    .. math::
        L = \frac{1}{N H} \sum_n \sum_h \sum_k t_{hnk} \log \frac{t_{hnk}}{s_{hnk}}

    over the :math:`N` queries and :math:`H` heads, of the probabilities of scores, or of given ones (MiniLM). Scores of
    masked keys, at or below -100, count as 0 in both, as in TinyBERT's code. With a mask neither queries nor keys of
    padding count.

    Shape:
        - student, teacher: :math:`(B, H, T, T)`; equal shapes, or unequal :math:`H` with ``heads="mean"``.
        - mask: :math:`(B, T)`.
        - Output: scalar :math:`()`, >= 0.

    Args:
        student: Attention of each head to train: of every query (third axis) to every key (last axis).
        teacher: Attention to imitate; no gradient reaches it.
        kind: What is given, scores before the softmax or probabilities after it, and whether their squared distance is
            compared or the divergence of the probabilities.
        mask: Which tokens are no padding; the others do not count. Without one all count, as in TinyBERT's code.
        heads: Whether head is compared with head, or the mean of all heads, for unequal numbers of them.
        reduction: Whether the mean is taken over all tokens at once, or for each sentence and then over sentences.

    Raises:
        ValueError: If the shapes do not match, or an option is unknown.

    Example:
        >>> student, teacher = torch.zeros(1, 1, 2, 2), torch.tensor([[[[1.0, 3.0], [0.0, -10000.0]]]])
        >>> attention_matrix_loss(student, teacher)  # (1 + 9) / 4
        tensor(2.5000)
        >>> attention_matrix_loss(student, teacher, mask=torch.tensor([[1, 0]]))
        tensor(1.)

    Reference:
        Jiao et al., "TinyBERT", EMNLP Findings 2020, arXiv:1909.10351 (scores).
        Wang et al., "MiniLM", NeurIPS 2020, arXiv:2002.10957 (divergence).
    """
    _check_options("attention_matrix_loss", kind, heads, reduction)
    _check_shapes("attention_matrix_loss", tuple(student.shape), tuple(teacher.shape), heads)
    if mask is not None and (
        mask.shape != (student.shape[0], student.shape[2]) or student.shape[2] != student.shape[3]
    ):
        raise ValueError(
            f"attention_matrix_loss: expected a mask (B, T) of the tokens of attention {tuple(student.shape)}, got "
            f"{tuple(mask.shape)}."
        )
    ours, theirs = upcast(student), upcast(teacher.detach())
    keys = None
    if mask is not None:  # so that NaN at padding reaches nothing
        keys = mask.bool()[:, None, None, :]
        pairs = keys & mask.bool()[:, None, :, None]
        ours, theirs = torch.where(pairs, ours, 0.0), torch.where(pairs, theirs, 0.0)
    if kind.endswith("_kl"):
        given_scores = kind == "scores_kl"
        log_q, log_p = (_log_shares(one, keys, heads, given_scores=given_scores) for one in (ours, theirs))
        return mean_of_sentences(divergence(log_p, log_q).mean(1), mask, reduction)
    if heads == "mean":
        ours, theirs = ours.mean(1, keepdim=True), theirs.mean(1, keepdim=True)
    if kind == "scores":
        ours, theirs = (torch.where(scores <= _MASKED, 0.0, scores) for scores in (ours, theirs))
    squares = (ours - theirs).square()
    return mean_of_sentences(squares.mean(1), mask, reduction)


@final
class AttentionMatrixLoss(ReadsAttention, LayerPairLoss):
    """Make the student's attention matrices those of the teacher (TinyBERT, MiniLM).

    Name blocks of transformers, such as ``"model.layers.3"`` of a model of Hugging Face or ``"blocks.11"`` of timm. Of
    these is read what goes through Hugging Face's interface, ``nn.MultiheadAttention``, or a module whose code calls
    ``torch.nn.functional.scaled_dot_product_attention``. Scores or probabilities are computed beside the model's own
    attention, whose numbers stay as they are, and before its dropout. Only ``nn.TransformerEncoderLayer`` leaves its
    fast path in eval mode, as torch does for any hook, which changes last bits. Windows outside Hugging Face's
    interface, attention to other tokens and matrices made by hand are refused. Or name modules whose output is the
    attention of each head, (B, H, T, T). Padded tokens do not count, as queries or as keys. The losses of several pairs
    are added.

    Args:
        student: Dotted name of the student's block, or of a module that returns attention, or a list of them; or
            ``"uniform"``, ``"skip"`` or ``"last"`` alone, which pair the blocks of both networks by their depth.
        teacher: Dotted name of the teacher's block for each of the student's, in the same order.
        kind: What is given, scores before the softmax or probabilities after it, and whether their squared distance is
            compared or the divergence of the probabilities.
        heads: Whether head is compared with head, or the mean of all heads, for unequal numbers of them.
        reduction: Whether the mean is taken over all tokens at once, or for each sentence and then over sentences.
        weight: Factor of this part in the total loss, >= 0. Published recipes use 1.

    Raises:
        ValueError: If the layers do not pair up, an option is unknown, or the weight is negative or not finite.
    """

    reads_raw = True
    layer_maps = LAYER_MAPS

    def __init__(
        self,
        student: Layers,
        teacher: Layers = None,
        *,
        kind: Kind = "scores",
        heads: Heads = "same",
        reduction: Reduction = "tokens",
        weight: Scalar = 1.0,
    ) -> None:
        super().__init__(student, teacher, weight=weight)
        _check_options("AttentionMatrixLoss", kind, heads, reduction)
        self.kind: Kind = kind
        self.heads: Heads = heads
        self.reduction: Reduction = reduction

    @property
    def counts_pairs(self) -> bool:
        """Whether squared distances are compared, whose mean is over pairs of tokens."""
        return not self.kind.endswith("_kl")

    @property
    def parts(self) -> tuple[Part, ...]:
        """Return what is read of each block: scores, or probabilities."""
        return ("probabilities",) if self.kind.startswith("probabilities") else ("scores",)

    def build(self, student_shapes: Mapping[str, Shape], teacher_shapes: Mapping[str, Shape]) -> None:
        """Check that the attention of each pair can be compared.

        Args:
            student_shapes: Shape of each named student module's output.
            teacher_shapes: The same for the teacher.

        Raises:
            ValueError: If a module returns no attention, or two of a pair cannot be compared; names both shapes.
        """
        for student, teacher in zip(self.student_layers, self.teacher_layers, strict=True):
            pair = f"AttentionMatrixLoss, student layer {student!r} and teacher layer {teacher!r}"
            ours, theirs = student_shapes[student], teacher_shapes[teacher]
            for role, name, shape in (("student", student, ours), ("teacher", teacher, theirs)):
                if is_module(name) and len(shape) != 4:
                    raise ValueError(
                        f"AttentionMatrixLoss: expected attention (B, H, T, T), got {shape} of the {role}. Its "
                        f"{no_attention(name)}"
                    )
            _check_shapes(pair, ours, (*ours[:1], *theirs[1:]), self.heads)

    def forward(
        self, student: Tensor | list[Tensor], teacher: Tensor | list[Tensor], mask: Tensor | None = None
    ) -> Tensor:
        """Compute the unweighted loss of one pair of attention matrices, or the sum over several."""
        return add_up([self.compare(s, t, mask) for s, t in pair_up(student, teacher)])

    def compare(self, student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
        """Compute the unweighted loss of one pair, see ``attention_matrix_loss``."""
        return attention_matrix_loss(
            student, teacher, kind=self.kind, mask=mask, heads=self.heads, reduction=self.reduction
        )


def _log_shares(attention: Tensor, keys: Tensor | None, heads: Heads, *, given_scores: bool) -> Tensor:
    """Return the logarithm of the share of each key, (B, H, T, T), or that of the mean of all heads."""
    info = torch.finfo(attention.dtype)
    if not given_scores:
        shares = attention.mean(1, keepdim=True) if heads == "mean" else attention
        return shares.clamp_min(info.tiny).log()
    scores = attention if keys is None else attention.masked_fill(~keys, info.min / 4)
    shares = torch.log_softmax(scores, -1).clamp_min(info.min / 4)
    return shares if heads == "same" else shares.logsumexp(1, keepdim=True) - math.log(shares.shape[1])


def _check_options(function: str, kind: str, heads: str, reduction: str) -> None:
    if kind not in get_args(Kind):
        raise ValueError(f"{function}: expected kind to be one of {list(get_args(Kind))}, got {kind!r}.")
    if heads not in get_args(Heads):
        raise ValueError(f"{function}: expected heads to be one of {list(get_args(Heads))}, got {heads!r}.")
    check_reduction(function, reduction)


def _check_shapes(function: str, student: Shape, teacher: Shape, heads: str) -> None:
    if len(student) != 4 or len(teacher) != 4:
        raise ValueError(
            f"{function}: expected attention (B, H, T, T), got student {student} and teacher {teacher}; name modules "
            "that return the attention of each head."
        )
    if student[0] != teacher[0] or student[2:] != teacher[2:]:
        raise ValueError(
            f"{function}: expected attention between the same tokens, got student {student} and teacher {teacher}. "
            "Take networks that cut their input into the same tokens, with as many class tokens, or compare maps by "
            "ATLoss."
        )
    if heads == "same" and student[1] != teacher[1]:
        raise ValueError(
            f"{function}: the student has {student[1]} heads, the teacher {teacher[1]}, attention of shape student "
            f"{student} and teacher {teacher}; compare the mean of all heads by heads='mean', or relations of Q, K and "
            "V by QKVRelationLoss, which needs no equal heads."
        )
