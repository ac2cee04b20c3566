"""Universal logit distillation (ULD): token distillation between different vocabularies."""

from collections.abc import Mapping
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_kd.losses.base import LOGITS, Shape, StepTensors
from lightning_kd.losses.checks import check_positive
from lightning_kd.losses.tensors import is_empty, zero_of
from lightning_kd.losses.tokens.divergences import precise
from lightning_kd.losses.tokens.mean import TokenMean
from lightning_kd.losses.tokens.order import Order, order_of
from lightning_kd.losses.tokens.selection import IGNORE_INDEX, choose, sum_of_counting
from lightning_kd.schedules import Scalar

_AHEAD = 1
"""How many positions before a token the logits of a causal model stand that predict it."""


def uld_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    student_labels: Tensor,
    teacher_labels: Tensor,
    *,
    temperature: float = 1.0,
) -> Tensor:
    r"""Distance of two sorted distributions over different vocabularies, as a mean over the tokens of answers (ULD).

    .. math::
        L = \frac{1}{B} \sum_b \frac{1}{n_b} \sum_{k=1}^{n_b} \sum_v \left| p^{\downarrow}_{bkv} -
        q^{\downarrow}_{bkv} \right|

    where :math:`p^{\downarrow}` and :math:`q^{\downarrow}` are the probabilities of teacher and student in descending
    order, the shorter filled up with zeros, of the :math:`k`-th answer token, and :math:`n_b` is the number of tokens
    of the shorter answer. Two vocabularies need not have a token in common.

    The answer is where the labels are not -100. The logits before a token are those that predict it, as in the authors'
    code; other codes read them at the token. An answer token at the very beginning has no logits, and is left out, as
    are rows without an answer. Logits :math:`(N, V)` hold one token a row, which is predicted by them already.

    Shape:
        - student_logits: :math:`(B, T_S, V_S)`, or :math:`(N, V_S)`.
        - teacher_logits: :math:`(B, T_T, V_T)`, or :math:`(N, V_T)`.
        - student_labels, teacher_labels: :math:`(B, T_S)` and :math:`(B, T_T)`, or both :math:`(N)`.
        - Output: scalar :math:`()`, >= 0.

    Args:
        student_logits: Unnormalised scores of the student's tokens, to train.
        teacher_logits: Unnormalised scores of the teacher's tokens; no gradient reaches them.
        student_labels: The student's token ids of the answer, -100 elsewhere.
        teacher_labels: The teacher's token ids of the answer, -100 elsewhere.
        temperature: Softening of both distributions, > 0, no unit.

    Raises:
        ValueError: If logits and labels do not match, or ``temperature`` is not positive.

    Example:
        >>> student, teacher = torch.zeros(1, 2, 2), torch.tensor([[[0.0, -99.0, 0.6931], [0.0, 0.0, 0.0]]])
        >>> ids = torch.tensor([[-100, 1]])
        >>> uld_loss(student, teacher, ids, ids)  # (.667, .333, 0) against (.5, .5, 0)
        tensor(0.3333)

    Reference:
        Boizard et al., "Towards Cross-Tokenizer Distillation", 2024, arXiv:2402.12030.
    """
    check_positive("uld_loss", temperature=temperature)
    total, sentences = _sum(student_logits, teacher_logits, student_labels, teacher_labels, temperature)
    loss = total / sentences.clamp_min(1)
    return loss.to(torch.promote_types(student_logits.dtype, torch.float32))


@final
class ULDLoss(TokenMean):
    """Make the sorted probabilities of the student's tokens those of the teacher's (ULD), for different vocabularies.

    Both networks must be given the same text in their own tokens, with the answer's labels of each: the student's in
    ``input_ids`` and ``labels``, the teacher's in the columns ``teacher_input_ids`` and ``teacher_labels``, of which
    ``teacher_inputs=OwnColumns()`` makes its inputs. Or override ``unpack_batch`` and ``teacher_inputs``. Where the
    batch has the student's labels alone, the k-th token of the student's answer is taken for the teacher's too. The
    logits before a token predict it, but those of encoder-decoders and masked models stand at the token. Prefer
    ``TokenKDLoss`` wherever the vocabularies agree.

    Args:
        temperature: Softening of both distributions, > 0, no unit.
        weight: Factor of this part in the total loss, >= 0.

    Raises:
        ValueError: If ``temperature`` is not positive, or the weight is negative or not finite.

    Example:
        >>> from functools import partial
        >>> from lightning_kd import DistillationModule
        >>> from lightning_kd.teachers import OwnColumns
        >>> class Bytes(torch.nn.Module):  # a causal model
        ...     def __init__(self, vocabulary):
        ...         super().__init__()
        ...         self.net = torch.nn.Sequential(torch.nn.Embedding(vocabulary, 4), torch.nn.Linear(4, vocabulary))
        ...     def forward(self, input_ids):
        ...         return self.net(input_ids)
        >>> module = DistillationModule(
        ...     Bytes(256),
        ...     Bytes(1000),
        ...     [ULDLoss()],
        ...     optimizer=partial(torch.optim.SGD, lr=0.1),
        ...     teacher_inputs=OwnColumns(),
        ... )
        >>> batch = {
        ...     "input_ids": torch.tensor([[81, 58, 52, 50]]),  # "Q:42", of which "42" is the answer
        ...     "labels": torch.tensor([[-100, -100, 52, 50]]),
        ...     "teacher_input_ids": torch.tensor([[700, 420]]),  # "Q:", "42"
        ...     "teacher_labels": torch.tensor([[-100, 420]]),
        ... }
        >>> module.prepare(batch)
        >>> module.set_moment(0)
        >>> module.training_step(batch, 0).isfinite()
        tensor(True)
    """

    needs_teacher_logits = True
    needs_target = True

    def __init__(self, *, temperature: Scalar = 1.0, weight: Scalar = 1.0) -> None:
        super().__init__(weight=weight)
        check_positive("ULDLoss", temperature=temperature)
        self.temperature = temperature
        self._ahead = (_AHEAD, _AHEAD)
        self._orders = (Order(True), Order(True))

    @property
    def predicts_next(self) -> bool:
        """Whether the student's logits at a position predict the token after it."""
        return self._ahead[0] > 0

    @property
    def order(self) -> Order:
        """What the student's positions predict, and of which tokens the mask is."""
        return Order(self.predicts_next, self._orders[0].mask_is_of_input)

    def see_networks(self, student: nn.Module, teacher: nn.Module | None) -> None:
        """Find out where the logits of a token stand: before it, or at it in encoder-decoders and masked models."""
        first, second = (Order(True) if network is None else order_of(network) for network in (student, teacher))
        self._orders = (first, second)
        ours, theirs = (0 if order.predicts_next is False else _AHEAD for order in self._orders)
        self._ahead = (ours, theirs)

    def build(self, student_shapes: Mapping[str, Shape], teacher_shapes: Mapping[str, Shape]) -> None:
        """Check that both networks score tokens.

        Args:
            student_shapes: Holds the shape of the student's logits.
            teacher_shapes: Holds the shape of the teacher's logits.

        Raises:
            ValueError: If one of them does not.
        """
        student, teacher = student_shapes.get(LOGITS), teacher_shapes.get(LOGITS)
        if student is not None and teacher is not None and (len(student) != len(teacher) or len(student) not in (2, 3)):
            raise ValueError(
                f"ULDLoss: expected logits (B, T, V) of both networks, got student {student} and teacher {teacher}."
            )

    def evaluate(self, step: StepTensors) -> Tensor:
        """Return the unweighted loss of a step, see ``uld_loss``."""
        if is_empty(step.student_logits):
            self.divide_by(torch.zeros((), dtype=torch.long))
            return zero_of(step.student_logits)
        own = step.teacher_target is not None
        value: Tensor = self(
            step.student_logits,
            step.teacher_logits,
            target=step.target,
            teacher_target=step.teacher_target,
            mask=None if self._orders[0].mask_is_of_input else step.mask,
            teacher_mask=None if self._orders[1].mask_is_of_input else step.teacher_mask if own else step.mask,
        )
        return value

    def forward(
        self,
        student_logits: Tensor,
        teacher_logits: Tensor,
        target: Tensor,
        teacher_target: Tensor | None = None,
        mask: Tensor | None = None,
        teacher_mask: Tensor | None = None,
    ) -> Tensor:
        """Compute the unweighted loss of a batch of logits, see ``uld_loss``; padding by a mask does not count."""
        labels = target if teacher_target is None else teacher_target
        total, sentences = _sum(
            student_logits,
            teacher_logits,
            target,
            labels,
            self.now(self.temperature),
            self._ahead,
            (_fitting(mask, target), _fitting(teacher_mask, labels)),
        )
        loss = total / self.divide_by(sentences)
        return loss.to(torch.promote_types(student_logits.dtype, torch.float32))


def _sum(
    student: Tensor,
    teacher: Tensor,
    student_labels: Tensor,
    teacher_labels: Tensor,
    temperature: float,
    ahead: tuple[int, int] = (_AHEAD, _AHEAD),
    masks: tuple[Tensor | None, Tensor | None] = (None, None),
) -> tuple[Tensor, Tensor]:
    """Return the sum over rows of each one's mean, and the number of rows with an answer.

    Args:
        student: The student's logits.
        teacher: The teacher's logits.
        student_labels: The student's labels.
        teacher_labels: The teacher's labels.
        temperature: Softening of both distributions.
        ahead: How many positions before a token the logits stand that predict it, of student and teacher.
        masks: Which tokens (B, T) of student and teacher are no padding.
    """
    _check(student, teacher, student_labels, teacher_labels)
    if student.ndim == 2:  # each row is one token, whose logits predict it
        ahead = (0, 0)
        student, teacher = student.unsqueeze(1), teacher.unsqueeze(1)
        student_labels, teacher_labels = student_labels.unsqueeze(1), teacher_labels.unsqueeze(1)
    length = min(student.shape[1], teacher.shape[1])
    ours, has_ours = _places(student_labels != IGNORE_INDEX, length, ahead[0], masks[0])
    theirs, has_theirs = _places(teacher_labels != IGNORE_INDEX, length, ahead[1], masks[1])
    exists = has_ours & has_theirs
    tokens = exists.sum(1, keepdim=True)
    of_row = choose(tokens.clamp_min(1).expand_as(exists).flatten(), exists, axes=0)
    q = _sorted_probabilities(student, ours, exists, temperature)
    p = _sorted_probabilities(teacher.detach(), theirs, exists, temperature).to(q.dtype)
    width = max(q.shape[-1], p.shape[-1])
    q, p = (F.pad(one, (0, width - one.shape[-1])) for one in (q, p))
    distance = (q - p).abs().sum(-1)
    return sum_of_counting(distance / of_row.clamp_min(1), exists), (tokens > 0).sum()


def _places(answer: Tensor, length: int, ahead: int, real: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return where the logits of the k-th answer token stand in each row (B, K), and whether they exist.

    Padding is no answer, and its logits predict nothing: after padding on the left a row begins anew.
    """
    if real is not None:
        answer = answer & real
    order = (~answer).to(torch.uint8).argsort(dim=1, stable=True)[:, :length]
    places = (order - ahead).clamp_min(0)
    exists = answer.gather(1, order) & (order >= ahead)
    return places, exists if real is None else exists & real.gather(1, places)


def _fitting(mask: Tensor | None, labels: Tensor) -> Tensor | None:
    """Return a mask that has a value for each label; the labels alone decide where it has not."""
    return mask.to(labels.device) if mask is not None and mask.ndim == 2 and mask.shape == labels.shape else None


def _sorted_probabilities(logits: Tensor, places: Tensor, exists: Tensor, temperature: float) -> Tensor:
    """Return the probabilities at the places that exist, in descending order: (M, V)."""
    rows = choose(logits.gather(1, places.unsqueeze(-1).expand(-1, -1, logits.shape[2])), exists)
    probabilities = (precise(rows, temperature) / temperature).softmax(-1)
    return probabilities.sort(-1, descending=True).values


def _check(student: Tensor, teacher: Tensor, student_labels: Tensor, teacher_labels: Tensor) -> None:
    got = (
        f"logits of student {tuple(student.shape)} and teacher {tuple(teacher.shape)}, labels "
        f"{tuple(student_labels.shape)} and {tuple(teacher_labels.shape)}"
    )
    if student.ndim != teacher.ndim or student.ndim not in (2, 3) or len(student) != len(teacher):
        raise ValueError(f"uld_loss: expected logits (B, T, V) of the same batch, got {got}.")
    if student_labels.shape != student.shape[:-1] or teacher_labels.shape != teacher.shape[:-1]:
        raise ValueError(f"uld_loss: expected labels (B, T) of each network's own tokens, got {got}.")
