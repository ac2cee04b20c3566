"""Distillation of numbers: make the student's predictions those of the teacher, or no worse than those."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal, final, get_args

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
Order = Literal["NC", "NCL", "NLC", "NCHW", "NHWC", "NCDHW", "NDHWC"]
"""Names of the axes of outputs in order: N the samples, C the numbers of one, the others its positions."""
_REMEDY = "give both networks outputs of the same numbers, or distil a layer with HintLoss"


def regression_kd_loss(
    student: Tensor,
    teacher: Tensor,
    target: Tensor | None = None,
    *,
    kind: Kind = "mse",
    delta: float = 1.0,
    margin: float = 0.0,
    axis: int = 1,
) -> Tensor:
    r"""Distance of the student's numbers from the teacher's, or from the target where the teacher does better.

    .. math::
        L_{mse} = \frac{1}{M} \sum_m (s_m - t_m)^2, \qquad
        L_{huber} = \frac{1}{M} \sum_m h_\delta(s_m - t_m), \qquad
        L_{bounded} = \frac{1}{N} \sum_n
            \begin{cases} \|s_n - y_n\|^2 & \|s_n - y_n\|^2 + m > \|t_n - y_n\|^2 \\ 0 & \text{else} \end{cases}

    over all :math:`M` numbers, or the :math:`N` samples (times positions), whose numbers are on one axis. Huber's
    :math:`h_\delta(d)` is :math:`d^2 / 2` up to :math:`\delta` and :math:`\delta (|d| - \delta / 2)` beyond. The
    bounded form lets the teacher decide only whether the student still has to learn: a student that is better than the
    teacher by more than the margin is left alone.

    Shape:
        - student, teacher: :math:`(B)`, :math:`(B, C)`, :math:`(B, C, H, W)`, with ``axis=-1`` :math:`(B, T, C)`, or
          any equal shapes.
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
        axis: The axis of the numbers of one sample at one position, for the bounded form only.

    Raises:
        ValueError: If the shapes differ, ``kind`` is unknown, a number is out of its range, there is no such axis, or
            the bounded form gets no target.

    Example:
        >>> student, teacher = torch.tensor([[1.0], [4.0]]), torch.tensor([[2.0], [2.0]])
        >>> regression_kd_loss(student, teacher)  # (1 + 4) / 2
        tensor(2.5000)
        >>> regression_kd_loss(student, teacher, kind="huber")  # (1 / 2 + 2 - 1 / 2) / 2
        tensor(1.)
        >>> regression_kd_loss(student, teacher, torch.zeros(2), kind="bounded")  # 1 is better than 4; 16 is not
        tensor(8.)
        >>> tokens = torch.tensor([[[1.0, 1.0], [2.0, 2.0]]])  # squared errors 2 and 8 at two positions
        >>> regression_kd_loss(tokens, tokens.flip(1), torch.zeros(1, 2, 2), kind="bounded", axis=-1)  # (0 + 8) / 2
        tensor(4.)

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
    if student.ndim > 1 and not -student.ndim <= axis < student.ndim:
        raise ValueError(f"regression_kd_loss: axis={axis} is no axis of numbers of shape {tuple(student.shape)}.")
    error, teacher_error = (_by_sample((numbers - right).square(), axis) for numbers in (student, teacher))
    return torch.where(error + margin > teacher_error, error, 0.0).mean()


@final
class RegressionKDLoss(LogitLoss):
    """Make the student's numbers those of the teacher, or let the teacher say when the student is good enough.

    For networks that predict numbers: regression, depth, boxes. ``"mse"`` and ``"huber"`` imitate the teacher, the
    second also where it is far off. ``"bounded"`` learns the target, but stops where the student beats the teacher,
    which keeps a noisy target from being learned by heart; it needs labels.

    Outputs of tokens or frames :math:`(B, T, C)` or :math:`(B, C, T)` count where the mask of the batch says that they
    are no padding; each is then a sample of its own. So it is in the bounded form without a mask: which axis holds the
    numbers of one is found at set-up, by the layer that makes them, or else asked for. Of other outputs, such as
    :math:`(B, C, H, W)`, it is axis 1, unless that layer has put them last.

    Args:
        kind: Which distance.
        delta: Where Huber's distance becomes linear, > 0, in the unit of the numbers.
        margin: How much better than the teacher the student has to be in the bounded form, >= 0, in the unit of the
            squared numbers.
        layout: Order of the axes of the outputs, such as ``"NLC"`` of tokens or ``"NHWC"``: N the samples, C the
            numbers of one, the others its positions. By default it is found at set-up.
        head: Which of several outputs of both networks to compare, by name or number; by default the one that the task
            reads.
        teacher_head: Which of several outputs of the teacher, if it has another name there.
        weight: Factor of this part in the total loss, >= 0. The paper uses 0.5 for the bounded form beside a task
            weight of 1.

    Raises:
        ValueError: If ``kind`` or ``layout`` is unknown, a number is out of its range, or the weight is negative or not
            finite; at set-up, if the bounded form gets three axes and nothing tells which holds the numbers.
    """

    output_kind = "regression"

    def __init__(
        self,
        kind: Kind = "mse",
        delta: float = 1.0,
        margin: float = 0.0,
        *,
        layout: Order | None = None,
        head: Head = None,
        teacher_head: Head = None,
        weight: Scalar = 1.0,
    ) -> None:
        super().__init__(head=head, teacher_head=teacher_head, weight=weight)
        _check_options("RegressionKDLoss", kind, delta, margin)
        if layout is not None and layout not in get_args(Order):
            raise ValueError(f"RegressionKDLoss: expected layout to be one of {list(get_args(Order))}, got {layout!r}.")
        self.layout = layout
        self.kind: Kind = kind
        self.delta = delta
        self.margin = margin
        self.needs_target = kind == "bounded"
        self.masked = False  # whether the batches have a mask of tokens; set-up finds out
        self.known_axes: set[int] = set()  # where the layers that make the outputs put the numbers; set-up finds out
        self._of_tokens = False
        self._axis: int | None = None

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
        """Check at set-up that a mask of tokens tells which outputs are of padding, and settle their axis.

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
            told = self._axis_of(shape)
            if len(shape) == 3 and mask[1] == shape[1] == shape[2] and told is None:
                raise ValueError(
                    f"Part {name!r}: the mask of the batch has the shape {mask}, and the {role}'s outputs have "
                    f"{shape}, so it is not known which axis is that of the tokens. Say it by "
                    "RegressionKDLoss(layout='NLC'), or 'NCL': N the batch, L the tokens, C the numbers. Or pad the "
                    "batches to another length, or override unpack_batch to return mask=None."
                )
            by_layout = self.layout is not None and told is not None
            if len(shape) == 3 and mask[1] not in (shape[3 - told : 4 - told] if by_layout and told else shape[1:]):
                raise ValueError(
                    f"Part {name!r}: the mask of the batch has the shape {mask}, but the {role}'s outputs have "
                    f"{shape}, so the mask does not say which of them are of padding. Override unpack_batch to return "
                    "Batch(..., mask=...) with the mask of the outputs, or mask=None."
                )
        self.settle_axis(student, mask[1])

    def settle_axis(self, shape: Shape | None, tokens: int | None) -> None:
        """Settle at set-up which axis of the outputs holds the numbers of one sample at one position.

        In another batch both axes may be as long.

        Args:
            shape: The shape of the student's outputs.
            tokens: How many tokens the mask of that batch has, ``None`` without one.

        Raises:
            ValueError: If the layout is of another number of axes, or nothing tells in the bounded form.
        """
        if shape is None:
            return
        self._axis = self._axis_of(shape)
        if len(shape) == 3 and self.layout is None and tokens in shape[1:] and shape[1] != shape[2]:
            self._axis = 2 if shape[1] == tokens else 1
        if self._axis is None:
            self._check_known(shape)

    def _axis_of(self, shape: Shape) -> int | None:
        """Return the axis of the numbers, ``None`` of three axes of which nothing tells."""
        if isinstance(self.layout, str):
            if len(self.layout) != len(shape):
                raise ValueError(
                    f"RegressionKDLoss: layout={self.layout!r} names {len(self.layout)} axes, but the outputs have the "
                    f"shape {shape}."
                )
            return self.layout.index("C")
        told = self.known_axes & {1, len(shape) - 1}
        if len(told) == 1:
            return next(iter(told))
        return None if len(shape) == 3 else 1

    def _check_known(self, shape: Shape) -> None:
        if self.kind == "bounded":
            raise ValueError(
                f"RegressionKDLoss: outputs of shape {shape} are tokens (B, T, C) or maps (B, C, L), and nothing tells "
                "which axis holds the numbers that the bounded form takes together. Say it by "
                "RegressionKDLoss('bounded', layout='NLC'), or 'NCL': N the batch, L the positions, C the numbers."
            )

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
        shape = step.student_logits.shape
        positions = shape[2] if self._axis == 1 else shape[1]
        return torch.tensor(shape[0] * positions, device=step.student_logits.device)

    def check_shapes(self, student: Shape, teacher: Shape) -> None:
        """Raise a ``ValueError`` that names both shapes unless both networks predict as many numbers."""
        if student[1:] != teacher[1:]:
            raise ValueError(f"RegressionKDLoss: outputs of shape student {student} and teacher {teacher}; {_REMEDY}.")

    def forward(self, student: Tensor, teacher: Tensor, target: Tensor | None = None) -> Tensor:
        """Compute the unweighted loss of a batch of predictions, see ``regression_kd_loss``.

        Args:
            student: Predictions of the student; of tokens that a mask has left, rows (M, C).
            teacher: Those of the teacher.
            target: The right numbers, for the bounded form.

        Raises:
            ValueError: If the shapes differ, or the bounded form gets three axes and neither the layout nor set-up
                tells which holds the numbers.
        """
        axis = 1
        if self.kind == "bounded" and student.ndim > 2:
            known = self._axis_of(tuple(student.shape)) if self._axis is None else self._axis
            if known is None:
                self._check_known(tuple(student.shape))
            axis = 1 if known is None else known
        return regression_kd_loss(
            student, teacher, target, kind=self.kind, delta=self.delta, margin=self.margin, axis=axis
        )


def _valid(values: Tensor, mask: Tensor, axis: int | None) -> Tensor:
    """Return the tokens that are no padding as rows (M, ...), of values (B, T), (B, T, C) or (B, C, T).

    Args:
        values: The numbers.
        mask: Which tokens are no padding.
        axis: The axis of the numbers of one token; the last one, unless set-up has found another.
    """
    values = values.mT if values.ndim == 3 and axis == 1 else values
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


def _by_sample(values: Tensor, axis: int) -> Tensor:
    return values if values.ndim < 2 else values.sum(dim=axis)


def _check_options(function: str, kind: str, delta: float, margin: float) -> None:
    if kind not in ("mse", "huber", "bounded"):
        raise ValueError(f"{function}: expected kind 'mse', 'huber' or 'bounded', got {kind!r}.")
    check_positive(function, delta=delta)
    check_not_negative(function, margin=margin)
