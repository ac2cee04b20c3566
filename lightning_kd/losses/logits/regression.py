"""Distillation of numbers: make the student's predictions those of the teacher, or no worse than those."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal, final

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_kd.capture.heads import Head
from lightning_kd.losses.base import Shape, StepTensors
from lightning_kd.losses.checks import check_not_negative, check_positive, check_same_shape
from lightning_kd.losses.logits.base import LogitLoss
from lightning_kd.losses.tensors import upcast_alike
from lightning_kd.schedules import Scalar

Kind = Literal["mse", "huber", "bounded"]
_REMEDY = "give both networks outputs of the same numbers, or distil a layer with HintLoss"


def regression_kd_loss(
    student: Tensor,
    teacher: Tensor,
    target: Tensor | None = None,
    *,
    kind: Kind = "mse",
    delta: float = 1.0,
    margin: float = 0.0,
) -> Tensor:
    r"""Distance of the student's numbers from the teacher's, or from the target where the teacher does better.

    .. math::
        L_{mse} = \frac{1}{M} \sum_m (s_m - t_m)^2, \qquad
        L_{huber} = \frac{1}{M} \sum_m h_\delta(s_m - t_m), \qquad
        L_{bounded} = \frac{1}{N} \sum_n
            \begin{cases} \|s_n - y_n\|^2 & \|s_n - y_n\|^2 + m > \|t_n - y_n\|^2 \\ 0 & \text{else} \end{cases}

    over all :math:`M` numbers, or the :math:`N` samples (times positions), whose numbers are on axis 1. Huber's
    :math:`h_\delta(d)` is :math:`d^2 / 2` up to :math:`\delta` and :math:`\delta (|d| - \delta / 2)` beyond. The
    bounded form lets the teacher decide only whether the student still has to learn: a student that is better than the
    teacher by more than the margin is left alone.

    Shape:
        - student, teacher: :math:`(B)`, :math:`(B, C)`, :math:`(B, C, H, W)` or any equal shapes.
        - target: the same shape; :math:`(B)` and :math:`(B, 1)` stand for one another.
        - Output: scalar :math:`()`, >= 0.

    Args:
        student: Numbers to train.
        teacher: Numbers to imitate; no gradient reaches them.
        target: The right numbers, for the bounded form only.
        kind: Which distance.
        delta: Where Huber's distance becomes linear, > 0, in the unit of the numbers.
        margin: How much better than the teacher the student has to be in the bounded form, >= 0, in the unit of the
            squared numbers.

    Raises:
        ValueError: If the shapes differ, ``kind`` is unknown, a number is out of its range, or the bounded form gets no
            target.

    Example:
        >>> student, teacher = torch.tensor([[1.0], [4.0]]), torch.tensor([[2.0], [2.0]])
        >>> regression_kd_loss(student, teacher)  # (1 + 4) / 2
        tensor(2.5000)
        >>> regression_kd_loss(student, teacher, kind="huber")  # (1 / 2 + 2 - 1 / 2) / 2
        tensor(1.)
        >>> regression_kd_loss(student, teacher, torch.zeros(2), kind="bounded")  # 1 is better than 4; 16 is not
        tensor(8.)

    Reference:
        Chen et al., "Learning Efficient Object Detection Models with Knowledge Distillation", NeurIPS 2017, equation 4
        (``bounded``).
    """
    _check_options("regression_kd_loss", kind, delta, margin)
    check_same_shape("regression_kd_loss", student, teacher, _REMEDY)
    student, teacher = upcast_alike(student, teacher.detach())
    if student.numel() == 0:
        return student.sum() * 0.0
    if kind == "mse":
        return F.mse_loss(student, teacher)
    if kind == "huber":
        return F.huber_loss(student, teacher, delta=delta)
    right = _like(target, student)
    error, teacher_error = (_by_sample((numbers - right).square()) for numbers in (student, teacher))
    return torch.where(error + margin > teacher_error, error, 0.0).mean()


@final
class RegressionKDLoss(LogitLoss):
    """Make the student's numbers those of the teacher, or let the teacher say when the student is good enough.

    For networks that predict numbers: regression, depth, boxes. ``"mse"`` and ``"huber"`` imitate the teacher, the
    second also where it is far off. ``"bounded"`` learns the target, but stops where the student beats the teacher,
    which keeps a noisy target from being learned by heart; it needs labels.

    Outputs of tokens or frames :math:`(B, T, C)` or :math:`(B, C, T)` count where the mask of the batch says that they
    are no padding; each is then a sample of its own.

    Args:
        kind: Which distance.
        delta: Where Huber's distance becomes linear, > 0, in the unit of the numbers.
        margin: How much better than the teacher the student has to be in the bounded form, >= 0, in the unit of the
            squared numbers.
        head: Which of several outputs of both networks to compare, by name or number; by default the one that the task
            reads.
        teacher_head: Which of several outputs of the teacher, if it has another name there.
        weight: Factor of this part in the total loss, >= 0. The paper uses 0.5 for the bounded form beside a task
            weight of 1.

    Raises:
        ValueError: If ``kind`` is unknown, a number is out of its range, or the weight is negative or not finite.
    """

    output_kind = "regression"

    def __init__(
        self,
        kind: Kind = "mse",
        delta: float = 1.0,
        margin: float = 0.0,
        *,
        head: Head = None,
        teacher_head: Head = None,
        weight: Scalar = 1.0,
    ) -> None:
        super().__init__(head=head, teacher_head=teacher_head, weight=weight)
        _check_options("RegressionKDLoss", kind, delta, margin)
        self.kind: Kind = kind
        self.delta = delta
        self.margin = margin
        self.needs_target = kind == "bounded"
        self.masked = False  # whether the batches have a mask of tokens; set-up finds out
        self._of_tokens = False
        self._axis = 1  # that of the tokens; set-up finds out, for in another batch both may be as long

    @property
    def reads_text(self) -> bool:
        """Whether the outputs are of tokens, of which a mask may say which are padding."""
        return self._of_tokens

    @property
    def means_over_tokens(self) -> bool:
        """Whether the loss is a mean over the valid tokens of all processes."""
        return self._of_tokens and self.masked

    def build(self, student_shapes: Mapping[str, Shape], teacher_shapes: Mapping[str, Shape]) -> None:
        """Check that both networks predict as many numbers.

        Args:
            student_shapes: Holds the shape of the student's outputs.
            teacher_shapes: Holds the shape of the teacher's outputs.

        Raises:
            ValueError: If they do not.
        """
        super().build(student_shapes, teacher_shapes)
        student, _ = self.logit_shapes(student_shapes, teacher_shapes)
        self._of_tokens = student is not None and len(student) == 3

    def check_mask(self, name: str, mask: Shape, student: Shape | None, teacher: Shape | None) -> None:
        """Check at set-up that a mask of tokens tells which outputs are of padding.

        Args:
            name: Name of the part.
            mask: Shape of the mask, :math:`(B, T)`.
            student: Shape of the student's outputs, if it is known.
            teacher: Shape of the teacher's outputs, if it is known.

        Raises:
            ValueError: If it does not: the outputs are of other positions, as frames are that a network of audio makes
                of samples, or it is not known whether they are of tokens.
        """
        for role, shape in (("student", student), ("teacher", teacher)):
            if shape is None:
                continue
            if len(shape) == 2 and shape == mask and shape[1] > 1:
                raise ValueError(
                    f"Part {name!r}: the {role}'s outputs and the mask of the batch both have the shape {shape}, so it "
                    "is not known whether each output is of a token, or whether a sample has as many numbers. Return "
                    f"outputs of shape {(*shape, 1)} for tokens, or override unpack_batch to return mask=None."
                )
            if len(shape) == 3 and mask[1] == shape[1] == shape[2]:
                raise ValueError(
                    f"Part {name!r}: the mask of the batch has the shape {mask}, and the {role}'s outputs have "
                    f"{shape}, so it is not known which axis is that of the tokens. Pad the batches to another length, "
                    "or override unpack_batch to return mask=None."
                )
            if len(shape) == 3 and mask[1] not in shape[1:]:
                raise ValueError(
                    f"Part {name!r}: the mask of the batch has the shape {mask}, but the {role}'s outputs have "
                    f"{shape}, so the mask does not say which of them are of padding. Override unpack_batch to return "
                    "Batch(..., mask=...) with the mask of the outputs, or mask=None."
                )
        if student is not None and len(student) == 3:
            self._axis = 1 if student[1] == mask[1] else 2

    def evaluate(self, step: StepTensors) -> Tensor:
        """Return the unweighted loss of a step, over the tokens that its mask leaves."""
        mask = step.decoder_mask if self.of_decoder else step.mask
        if mask is None or mask.ndim != 2 or not self._of_tokens:
            return super().evaluate(step)

        def kept(values: Tensor | None) -> Tensor | None:
            return None if values is None else _valid(values, mask, self._axis)

        head_of = step.head_of
        return super().evaluate(
            replace(
                step,
                student_logits=kept(step.student_logits),
                compared_logits=kept(step.compared_logits),
                teacher_logits=kept(step.teacher_logits),
                target=kept(step.target) if self.needs_target else step.target,
                head_of=None if head_of is None else lambda role, head: kept(head_of(role, head)),
            )
        )

    def _tokens(self, step: StepTensors) -> Tensor:
        mask = step.decoder_mask if self.of_decoder else step.mask
        if mask is not None and mask.ndim == 2:
            return mask.sum()
        assert step.student_logits is not None, "it is compared"
        return torch.tensor(step.student_logits.shape[:2].numel(), device=step.student_logits.device)

    def check_shapes(self, student: Shape, teacher: Shape) -> None:
        """Raise a ``ValueError`` that names both shapes unless both networks predict as many numbers."""
        if student[1:] != teacher[1:]:
            raise ValueError(f"RegressionKDLoss: outputs of shape student {student} and teacher {teacher}; {_REMEDY}.")

    def forward(self, student: Tensor, teacher: Tensor, target: Tensor | None = None) -> Tensor:
        """Compute the unweighted loss of a batch of predictions, see ``regression_kd_loss``."""
        return regression_kd_loss(student, teacher, target, kind=self.kind, delta=self.delta, margin=self.margin)


def _valid(values: Tensor, mask: Tensor, axis: int) -> Tensor:
    """Return the tokens that are no padding as rows (M, ...), of values (B, T), (B, T, C) or (B, C, T)."""
    values = values.mT if values.ndim == 3 and axis == 2 else values
    if values.shape[:2] != mask.shape:
        raise ValueError(
            f"RegressionKDLoss: the mask of the batch has the shape {tuple(mask.shape)}, but there are numbers of "
            f"shape {tuple(values.shape)} beside it, so it does not say which of them are of padding."
        )
    return values[mask]


def _like(target: Tensor | None, numbers: Tensor) -> Tensor:
    """Return the target in the shape of the numbers; a missing axis 1 of length one is no difference."""
    if target is None:
        raise ValueError("regression_kd_loss: kind='bounded' needs the target; give it, or use kind='mse'.")
    same = target.shape == numbers.shape
    if not same and _without_single(target) != _without_single(numbers):
        raise ValueError(
            f"regression_kd_loss: expected a target of shape {tuple(numbers.shape)}, got {tuple(target.shape)}."
        )
    return target.to(numbers.dtype).reshape(numbers.shape)


def _without_single(tensor: Tensor) -> tuple[int, ...]:
    shape = tuple(tensor.shape)
    return (shape[0], *shape[2:]) if len(shape) > 1 and shape[1] == 1 else shape


def _by_sample(values: Tensor) -> Tensor:
    return values if values.ndim < 2 else values.sum(dim=1)


def _check_options(function: str, kind: str, delta: float, margin: float) -> None:
    if kind not in ("mse", "huber", "bounded"):
        raise ValueError(f"{function}: expected kind 'mse', 'huber' or 'bounded', got {kind!r}.")
    check_positive(function, delta=delta)
    check_not_negative(function, margin=margin)
