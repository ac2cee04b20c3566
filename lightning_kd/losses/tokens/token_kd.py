"""Token distillation: make the student's distribution over the vocabulary that of the teacher, token by token."""

from collections.abc import Mapping
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_kd.capture.documents import document_starts
from lightning_kd.losses.base import LOGITS, Shape, StepTensors
from lightning_kd.losses.checks import check_not_negative, check_positive
from lightning_kd.losses.tensors import is_empty, upcast, zero_of
from lightning_kd.losses.tokens.dense import dense_values
from lightning_kd.losses.tokens.divergences import Divergence, Form, check_settings, closed_form, precise
from lightning_kd.losses.tokens.fused import Memory, fused_sum
from lightning_kd.losses.tokens.fused_sparse import fused_sparse_sum
from lightning_kd.losses.tokens.heads import Aim, Head
from lightning_kd.losses.tokens.mean import TokenMean
from lightning_kd.losses.tokens.order import Order, find_order
from lightning_kd.losses.tokens.selection import (
    IGNORE_INDEX,
    choose,
    counting_positions,
    number,
    predicted,
    sum_of_counting,
)
from lightning_kd.losses.tokens.sparse import Missing, SparseLogits, check_sparse, sparse_values
from lightning_kd.losses.tokens.token_options import Shift, Tokens, Vocabulary, check_names, check_tokens
from lightning_kd.schedules import Scalar, check_whole


def token_kd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor | SparseLogits,
    *,
    labels: Tensor | None = None,
    mask: Tensor | None = None,
    divergence: Divergence = "forward_kl",
    alpha: float = 0.1,
    beta: float = 0.5,
    ratio: float = 0.5,
    temperature: float = 1.0,
    temperature_squared: bool = False,
    shift: bool = False,
    ignore_index: int = -100,
    denominator: float | Tensor | None = None,
    missing: Missing = "renormalize",
) -> Tensor:
    r"""Divergence of the student's distribution of the next token from the teacher's, as a mean over tokens.

    .. math::
        L = \frac{1}{N} \sum_{n \in \text{tokens}} D(p_n, q_n), \qquad
        p = \mathrm{softmax}(z^t / T), \quad q = \mathrm{softmax}(z^s / T)

    over the :math:`N` tokens that count. With :math:`r_v = \log p_v - \log q_v`, the divergences :math:`D` are

    - ``forward_kl``: :math:`\sum_v p \log \frac{p}{q}`, and ``reverse_kl``: :math:`\sum_v q \log \frac{q}{p}`;
    - ``symmetric_kl``: ``ratio`` times the forward one and 1 - ``ratio`` times the reverse one;
    - ``jsd``: :math:`\beta \, KL(p \| m) + (1 - \beta) \, KL(q \| m)` with :math:`m = \beta p + (1 - \beta) q`, which
      goes to 0 with :math:`\beta` and with :math:`1 - \beta`;
    - ``skew_forward_kl``: :math:`KL(p \,\|\, \alpha p + (1 - \alpha) q)`, and ``skew_reverse_kl``:
      :math:`KL(q \,\|\, (1 - \alpha) p + \alpha q)`;
    - ``total_variation``: :math:`\frac{1}{2} \sum_v |p - q|`;
    - ``alpha_beta``: :math:`\frac{1}{\alpha \beta} \sum_v \left( \frac{\alpha}{\alpha + \beta} p^{\alpha + \beta} +
      \frac{\beta}{\alpha + \beta} q^{\alpha + \beta} - p^\alpha q^\beta \right)`, and its limits where a factor is 0:
      (1, 0) is the forward KL, (0, 1) the reverse one.

    Values are true divergences, 0 at equal distributions; some published codes leave out the teacher's entropy, which
    has no gradient. Positions that do not count are left out before anything is computed, so NaN at padding does no
    harm. A logit of -inf in both networks, as of a padded vocabulary, adds nothing. If nothing counts, the loss is 0.

    Shape:
        - student_logits: :math:`(B, T, V)`, or :math:`(N, V)` without ``shift``.
        - teacher_logits: the same shape, or ``SparseLogits`` with ids and log-probabilities :math:`(B, T, K)`.
        - labels, mask: :math:`(B, T)`.
        - Output: scalar :math:`()`, >= 0.

    Args:
        student_logits: Unnormalised scores of the tokens of the vocabulary, to train.
        teacher_logits: Scores to imitate, or ``SparseLogits``; no gradient reaches them.
        labels: Token ids; a position whose label is ``ignore_index`` does not count. All count by default.
        mask: Which tokens are no padding; the others do not count.
        divergence: Which divergence. ``forward_kl`` covers all that the teacher does, ``reverse_kl`` only
            what it prefers, the others lie between.
        alpha: Share of the other distribution in the mixture of the skew divergences, between 0 and 1; the first
            exponent of ``alpha_beta``.
        beta: Weight of the teacher's part of ``jsd``, between 0 and 1; the second exponent of ``alpha_beta``.
        ratio: Weight of the forward part of ``symmetric_kl``, 0 to 1.
        temperature: Softening of both distributions, > 0, no unit.
        temperature_squared: Multiply by the square of the temperature, so that the gradient of a KL keeps its size.
        shift: The logits at a position predict the token after it, as those of a causal model; for labels that no
            collator has shifted. Then the last position predicts nothing, and neither do positions of padding.
        ignore_index: Label of a token that is no target.
        denominator: Number to divide the sum by, in the place of the number of tokens that count.
        missing: For ``SparseLogits``, what the tokens are that are not stored: the teacher gives them probability 0
            (``"renormalize"``); they are one token more (``"tail"``), which the temperature softens as one; or the
            student is free there (``"renormalize_both"``).

    Raises:
        ValueError: If the shapes do not match, a setting is out of range or has no effect.

    Example:
        >>> student, teacher = torch.zeros(1, 2, 2), torch.tensor([[[1.0986, 0.0], [0.0, 9.0]]])
        >>> token_kd_loss(student, teacher, labels=torch.tensor([[1, -100]]))  # p = (.75, .25) against (.5, .5)
        tensor(0.1308)
        >>> token_kd_loss(student, teacher, mask=torch.tensor([[1, 0]]), divergence="total_variation")
        tensor(0.2500)

    Reference:
        Hinton, Vinyals & Dean, "Distilling the Knowledge in a Neural Network", 2015, arXiv:1503.02531 (forward KL).
        Gu et al., "MiniLLM", ICLR 2024, arXiv:2306.08543 (reverse KL).
        Agarwal et al., "On-Policy Distillation of Language Models", ICLR 2024, arXiv:2306.13649 (JSD).
        Ko et al., "DistiLLM", ICML 2024, arXiv:2402.03898 (skew KL).
        Wang et al., "ABKD", ICML 2025, arXiv:2505.04560 (alpha-beta; the limits are those of the formula).
    """
    check_settings("token_kd_loss", divergence, alpha, beta, ratio)
    check_positive("token_kd_loss", temperature=temperature)
    _check_logits("token_kd_loss", student_logits, teacher_logits, missing)
    if isinstance(teacher_logits, SparseLogits):
        check_sparse("token_kd_loss", divergence, missing, temperature, teacher_logits, student_logits.shape[-1])
    positions = student_logits.shape[:-1]
    counts = counting_positions(
        "token_kd_loss",
        positions,
        labels=labels,
        mask=mask,
        ignore_index=ignore_index,
        shift=shift,
        device=student_logits.device,
    )
    form = closed_form(divergence, alpha, beta, ratio)
    total = _sum(student_logits, teacher_logits, counts, form, temperature, missing)
    if temperature_squared:
        total = total * temperature**2
    loss = total / (number(counts, positions).clamp_min(1) if denominator is None else denominator)
    return loss.to(torch.promote_types(student_logits.dtype, torch.float32))


@final
class TokenKDLoss(TokenMean):
    """Make the student's distribution of each token that of the teacher (token distillation of language models).

    For logits (B, T, V) of two networks with one vocabulary; the labels of the batch and its ``attention_mask`` say
    which tokens count. The teacher may be a ``BatchTeacher`` with a few tokens of each position. The loss is the mean
    over all tokens of all processes and, where it trains alone or beside other means over tokens, of a whole
    accumulation window. Best to start with: the forward KL at temperature 1. A student that is much smaller often does
    better with ``"skew_forward_kl"``, ``"jsd"`` or ``"reverse_kl"``.

    Args:
        divergence: Which divergence. ``forward_kl`` covers all that the teacher does, ``reverse_kl`` only
            what it prefers, the others lie between.
        fused: Whether both output layers are computed inside the loss, so that the logits never stand whole in memory;
            by default where the vocabulary is large and nobody else reads the logits. With ``True`` it is an error if
            that cannot be.
        memory: For the fused loss, whether the gradient is computed together with the value and kept (``"save"``), or
            later from the hidden states (``"recompute"``), which keeps nothing of the size of the vocabulary and takes
            two thirds more time.
        vocab: Whether the vocabularies must agree, or what is beyond the smaller one is cut off: for one tokenizer and
            outputs that are padded to other sizes. ``cross_entropy`` is over the student's whole vocabulary.
        shift: Whether the logits at a position predict the token after it. ``"auto"`` asks the student's class at
            set-up and says so; labels that a collator has shifted already need ``False``.
        temperature: Softening of both distributions, > 0, no unit.
        alpha: Share of the other distribution in the mixture of the skew divergences, between 0 and 1; the first
            exponent of ``alpha_beta``.
        beta: Weight of the teacher's part of ``jsd``, between 0 and 1; the second exponent of ``alpha_beta``.
        ratio: Weight of the forward part of ``symmetric_kl``, 0 to 1.
        temperature_squared: Multiply by the square of the temperature, so that the gradient of a KL keeps its size.
        ignore_index: Label of a token that is no target.
        tokens: Whether those tokens count that have a label and are no padding, or all that are no padding
            (``"mask"``), whatever their labels: DistilBERT distils these, while its task is to fill in masked words.
        cross_entropy: Weight of the cross entropy with the labels, which is added to the divergence over the same
            tokens; then leave out the task's own loss.
        missing: For ``SparseLogits``, what the tokens are that are not stored: the teacher gives them probability 0
            (``"renormalize"``); they are one token more (``"tail"``), which the temperature softens as one; or the
            student is free there (``"renormalize_both"``).
        weight: Factor of this part in the total loss, >= 0.

    Raises:
        ValueError: If an option is unknown, out of range or without effect, or the weight is negative or not finite.
    """

    needs_teacher_logits = True
    reads_sparse = True

    def __init__(
        self,
        divergence: Divergence = "forward_kl",
        *,
        fused: bool | None = None,
        memory: Memory = "save",
        vocab: Vocabulary = "same",
        shift: Shift = "auto",
        temperature: Scalar = 1.0,
        alpha: Scalar = 0.1,
        beta: Scalar = 0.5,
        ratio: Scalar = 0.5,
        temperature_squared: bool = False,
        ignore_index: int = -100,
        tokens: Tokens = "labels",
        cross_entropy: Scalar = 0.0,
        missing: Missing = "renormalize",
        weight: Scalar = 1.0,
    ) -> None:
        super().__init__(weight=weight)
        check_settings("TokenKDLoss", divergence, alpha, beta, ratio)
        check_positive("TokenKDLoss", temperature=temperature)
        check_not_negative("TokenKDLoss", cross_entropy=cross_entropy)
        check_whole("TokenKDLoss", "ignore_index", ignore_index)
        check_names(vocab=vocab, memory=memory, missing=missing, tokens=tokens, shift=shift, fused=fused)
        check_tokens(tokens, ignore_index, cross_entropy)
        self.divergence: Divergence = divergence
        self.fused = fused
        self.memory: Memory = memory
        self.vocab: Vocabulary = vocab
        self.shift: Shift = shift
        self.temperature = temperature
        self.alpha = alpha
        self.beta = beta
        self.ratio = ratio
        self.temperature_squared = temperature_squared
        self.ignore_index = ignore_index
        self.tokens: Tokens = tokens
        self.cross_entropy = cross_entropy
        self.missing: Missing = missing
        self._order = Order(predicts_next=None if shift == "auto" else shift, known=shift != "auto")

    @property
    def order(self) -> Order:
        """Which token a position predicts, as far as that is known."""
        return self._order

    def see_networks(self, student: nn.Module, teacher: nn.Module | None) -> None:
        """Find out which token a position predicts, and whether the mask is that of the predicted tokens."""
        self._order = find_order(student, teacher, None if self.shift == "auto" else self.shift)
        if self.tokens == "mask" and self._order.mask_is_of_input:
            raise ValueError(
                f"TokenKDLoss: tokens='mask' counts the tokens of attention_mask, which are those of the encoder of "
                f"{type(student).__name__}, not those of its logits; leave the option out, so that the labels decide."
            )

    def build(self, student_shapes: Mapping[str, Shape], teacher_shapes: Mapping[str, Shape]) -> None:
        """Check that both networks score the same tokens.

        Args:
            student_shapes: Holds the shape of the student's logits.
            teacher_shapes: Holds the shape of the teacher's logits.

        Raises:
            ValueError: If the vocabularies or the positions differ, or it cannot be known which token is predicted.
        """
        student, teacher = student_shapes.get(LOGITS), teacher_shapes.get(LOGITS)
        if teacher is not None and self.missing != "renormalize":
            raise ValueError(
                f"TokenKDLoss: missing={self.missing!r} has no effect on whole logits; it is for SparseLogits."
            )
        if student is None or teacher is None:
            return
        if len(student) == 3 and self._order.known:  # a checkpoint is read before the networks are seen
            self._order.check(student)
        cut = self.vocab == "truncate"
        if len(student) not in (2, 3) or student[1:-1] != teacher[1:-1] or not (cut or student[-1] == teacher[-1]):
            raise ValueError(
                f"TokenKDLoss: expected logits (B, T, V) of the same tokens and vocabulary, got student {student} and "
                f"teacher {teacher}. If both networks have one tokenizer, and a vocabulary is only padded to another "
                "size, say vocab='truncate'; for different tokenizers use ULDLoss, for classes KDLoss."
            )

    def evaluate(self, step: StepTensors) -> Tensor:
        """Return the unweighted loss of a step, over the tokens that its labels and its mask leave."""
        if is_empty(step.student_logits):
            assert step.student_logits is not None
            self.divide_by(torch.zeros((), device=step.student_logits.device))
            return zero_of(step.student_logits)
        mask = step.mask
        if self._order.mask_is_of_input:  # the other is that of the decoder's inputs, which are the tokens before
            mask = None if self._order.predicts_next else step.decoder_mask
        if mask is not None and mask.ndim != 2:
            mask = None
        if step.hidden is not None and step.heads is not None:
            starts = document_starts(step.position_ids, step.mask, step.hidden[0].shape[:-1])
            return self.of_hidden(*step.hidden, step.heads, step.target, mask, starts)
        teacher = step.teacher_logits if step.sparse is None else step.sparse
        assert step.student_logits is not None, "the engine has checked it"
        starts = document_starts(step.position_ids, step.mask, step.student_logits.shape[:-1])
        value: Tensor = self(step.student_logits, teacher, target=step.target, mask=mask, starts=starts)
        return value

    def of_hidden(
        self,
        student: Tensor,
        teacher: Tensor | SparseLogits,
        heads: tuple[Head, Head | None],
        target: Tensor | None,
        mask: Tensor | None,
        starts: Tensor | None = None,
    ) -> Tensor:
        """Compute the unweighted loss of hidden states (B, T, H), with both output layers inside.

        Args:
            student: What the student's output layer is given.
            teacher: What the teacher's is given, or a few tokens of each position.
            heads: The output layers of both; of the student alone for a few tokens.
            target: The labels.
            mask: Which tokens are no padding.
            starts: Which tokens are the first of a document, which the document before does not predict.
        """
        positions = student.shape[:-1]
        shift, counts = self._counting((*positions, 0), target, mask, student.device, starts)
        temperature, weight = self.now(self.temperature), self.now(self.cross_entropy)
        aim = Aim(
            self.divergence,
            alpha=self.now(self.alpha),
            beta=self.now(self.beta),
            ratio=self.now(self.ratio),
            temperature=temperature,
            factor=temperature**2 if self.temperature_squared else 1.0,
            cross_entropy=weight,
        )
        labels = predicted(self._labels(target), shift, self.ignore_index) if weight else None
        ours, theirs = heads
        if isinstance(teacher, SparseLogits):
            weight_of_head = getattr(ours.module, "weight", None)
            self._check_sparse(teacher, None if weight_of_head is None else len(weight_of_head))
            total, entropy = fused_sparse_sum(
                student, teacher, ours, aim, self.missing, counts=counts, labels=labels, memory=self.memory
            )
        else:
            assert theirs is not None, "it has hidden states"
            total, entropy = fused_sum(
                student, teacher, (ours, theirs), aim, counts=counts, labels=labels, memory=self.memory
            )
        tokens = self.divide_by(number(counts, positions).to(student.device))
        if weight:
            self.details = {"cross_entropy": (entropy / tokens).detach()}
        return total / tokens

    def _counting(
        self, logits: Shape, target: Tensor | None, mask: Tensor | None, device: torch.device, starts: Tensor | None
    ) -> tuple[bool, Tensor | None]:
        """Return whether a position predicts the token after it, and which positions count."""
        positions = torch.Size(logits[:-1])
        shift = len(positions) > 1 and self._order.check(logits)
        if self.tokens == "mask":
            target = None
        ignored = self.ignore_index if target is not None else IGNORE_INDEX
        known = {"labels": target, "mask": mask, "starts": starts}
        counts = counting_positions("TokenKDLoss", positions, **known, ignore_index=ignored, shift=shift, device=device)
        return shift, counts

    def forward(
        self,
        student_logits: Tensor,
        teacher_logits: Tensor | SparseLogits,
        target: Tensor | None = None,
        mask: Tensor | None = None,
        starts: Tensor | None = None,
    ) -> Tensor:
        """Compute the unweighted loss of a batch of logits, see ``token_kd_loss`` and :meth:`of_hidden`."""
        whole = student_logits
        if self.vocab == "truncate" and isinstance(teacher_logits, Tensor):
            size = min(student_logits.shape[-1], teacher_logits.shape[-1])
            student_logits, teacher_logits = student_logits[..., :size], teacher_logits[..., :size]
        if isinstance(teacher_logits, SparseLogits):
            self._check_sparse(teacher_logits, student_logits.shape[-1])
        _check_logits("TokenKDLoss", student_logits, teacher_logits, self.missing)
        positions = student_logits.shape[:-1]
        shift, counts = self._counting(tuple(student_logits.shape), target, mask, student_logits.device, starts)
        temperature = self.now(self.temperature)
        form = closed_form(self.divergence, self.now(self.alpha), self.now(self.beta), self.now(self.ratio))
        total = _sum(student_logits, teacher_logits, counts, form, temperature, self.missing)
        if self.temperature_squared:
            total = total * temperature**2
        tokens = self.divide_by(number(counts, positions).to(student_logits.device))
        loss = total / tokens
        weight = self.now(self.cross_entropy)
        if weight:
            labels = predicted(self._labels(target), shift, self.ignore_index)
            task = _cross_entropy(whole, labels, counts) / tokens
            self.details = {"cross_entropy": task.detach()}
            loss = loss + weight * task
        return loss.to(torch.promote_types(student_logits.dtype, torch.float32))

    def _check_sparse(self, teacher: SparseLogits, vocabulary: int | None) -> None:
        if self.vocab == "truncate":
            raise ValueError(
                "TokenKDLoss: vocab='truncate' has no effect on SparseLogits, whose ids are those of the student; "
                "leave it out."
            )
        size = teacher.shape[-1] if vocabulary is None else vocabulary
        check_sparse("TokenKDLoss", self.divergence, self.missing, self.now(self.temperature), teacher, size)

    def _labels(self, target: Tensor | None) -> Tensor:
        if target is None:
            raise ValueError(
                "TokenKDLoss: cross_entropy needs labels, but the batch has none; give them, or leave the option out."
            )
        return target


def _cross_entropy(student: Tensor, labels: Tensor, counts: Tensor | None) -> Tensor:
    """Add up the cross entropy at the positions that count."""
    values = F.cross_entropy(upcast(choose(student, counts)), choose(labels, counts, axes=0).long(), reduction="none")
    return sum_of_counting(values, counts)


def _sum(
    student: Tensor,
    teacher: Tensor | SparseLogits,
    counts: Tensor | None,
    form: Form,
    temperature: float,
    missing: Missing,
) -> Tensor:
    """Add up the divergence at the positions that count."""
    chosen = precise(choose(student, counts), temperature)
    if isinstance(teacher, SparseLogits):
        of_rows = (choose(teacher.ids, counts), choose(teacher.log_probs.detach(), counts))
        values = sparse_values(chosen, SparseLogits(*of_rows, teacher.sampled), form, missing, temperature)
    else:
        values = dense_values(
            chosen, precise(choose(teacher.detach(), counts), temperature).to(chosen.dtype), form, temperature
        )
    return sum_of_counting(values, counts)


def _check_logits(function: str, student: Tensor, teacher: Tensor | SparseLogits, missing: str) -> None:
    sparse = isinstance(teacher, SparseLogits)
    if student.ndim < 2:
        raise ValueError(
            f"{function}: expected logits (B, T, V), got student {tuple(student.shape)} and teacher "
            f"{tuple(teacher.shape)}."
        )
    same = student.shape[:-1] == teacher.shape[:-1] if sparse else student.shape == teacher.shape
    if not same:
        vocabularies = student.shape[:-1] == teacher.shape[:-1]
        remedy = (
            "the vocabularies differ; use uld_loss for other tokenizers, or cut off what pads the larger one"
            if vocabularies
            else "both networks must read the same tokens"
        )
        raise ValueError(
            f"{function}: expected logits of one shape, got student {tuple(student.shape)} and teacher "
            f"{tuple(teacher.shape)}: {remedy}."
        )
    if not sparse and missing != "renormalize":
        raise ValueError(f"{function}: missing={missing!r} has no effect on whole logits; it is for SparseLogits.")
