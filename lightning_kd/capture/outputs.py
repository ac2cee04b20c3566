"""How the outputs of student and teacher are read: which head, which classes, and on which scale."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from lightning_kd.capture.heads import Head, head_of

TeacherOutputs = Literal["logits", "probabilities", "log_probabilities", "label_probabilities"]
"""What a teacher returns: unnormalised scores, a softmax of them, its logarithm, or a sigmoid of each."""

LogitsOf = Callable[[Any], Tensor | None]


@dataclass
class Outputs:
    """The options that say how outputs are read; both doors take them.

    Args:
        logits: Which of several outputs the task reads.
        teacher_logits: Which of several outputs of the teacher; by default the one of the same name.
        teacher_outputs: What the teacher returns; by default logits, which are looked at at set-up.
        teacher_classes: The teacher's class for each class of the student that is compared.
        student_classes: The student's classes that are compared; by default all.

    Raises:
        ValueError: If ``teacher_outputs`` is unknown, or a list of classes is empty, or names one twice or below 0.

    Example:
        >>> outputs = Outputs(teacher_outputs="probabilities", teacher_classes=[2, 0])
        >>> outputs.of_teacher(torch.tensor([[0.25, 0.5, 0.25]]), lambda output: output).exp()
        tensor([[0.2500, 0.2500]])
    """

    logits: Head = None
    teacher_logits: Head = None
    teacher_outputs: TeacherOutputs | None = None
    teacher_classes: Sequence[int] | None = None
    student_classes: Sequence[int] | None = None
    _indices: dict[tuple[str, torch.device], Tensor] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.teacher_outputs not in (None, *get_args(TeacherOutputs)):
            raise ValueError(
                f"Expected teacher_outputs to be one of {list(get_args(TeacherOutputs))}, got {self.teacher_outputs!r}."
            )
        for name in ("teacher_classes", "student_classes"):
            chosen = getattr(self, name)
            if chosen is not None:
                setattr(self, name, _class_numbers(name, chosen))
        chosen, own = self.teacher_classes, self.student_classes
        if chosen is not None and own is not None and len(chosen) != len(own):
            raise ValueError(
                f"Expected as many teacher_classes as student_classes, got {len(chosen)} and {len(own)}; each class of "
                "the student is compared with the teacher's at the same place."
            )

    def plain(self) -> dict[str, Any]:
        """Return the options that were given, as plain data."""
        names = ("logits", "teacher_logits", "teacher_outputs", "teacher_classes", "student_classes")
        return {name: value for name in names if (value := getattr(self, name)) is not None}

    def of_teacher(self, output: Any, logits_of: LogitsOf, head: Head = None, *, axis: int = 1) -> Tensor | None:
        """Return the teacher's logits in the form in which they are compared with the student's.

        Args:
            output: What the teacher returned.
            logits_of: Finds the logits where no head is named.
            head: Which of several outputs a loss reads; by default the one that the task reads.
            axis: The axis of the classes: 1, or -1 of tokens (B, T, V).
        """
        logits = self.as_returned(output, logits_of, head)
        if logits is None:
            return None
        if self.teacher_outputs is not None:
            logits = _as_logits(logits, self.teacher_outputs, axis)
        if self.teacher_classes is None:
            return logits
        return self._columns(logits, "teacher", self.teacher_classes, axis)

    def as_returned(self, output: Any, logits_of: LogitsOf, head: Head = None) -> Tensor | None:
        """Return the head of the teacher that is read, as the teacher returned it."""
        head = self.teacher_logits if head is None else head
        return logits_of(output) if head is None else head_of(output, head)

    def compared(self, logits: Tensor | None, axis: int = 1) -> Tensor | None:
        """Return the student's logits that are compared with the teacher's, ``None`` if these are all of them."""
        if logits is None or self.student_classes is None:
            return None
        return self._columns(logits, "student", self.student_classes, axis)

    def _columns(self, logits: Tensor, role: str, chosen: Sequence[int], axis: int) -> Tensor:
        if logits.ndim not in ((2, 4) if axis == 1 else (2, 3)) or logits.shape[axis] <= max(chosen):
            shapes = "(B, C) or (B, C, H, W)" if axis == 1 else "(B, T, C) of tokens"
            raise ValueError(
                f"{role}_classes names the class {max(chosen)}, but the {role}'s logits have the shape "
                f"{tuple(logits.shape)}; expected logits {shapes} with more classes than that."
            )
        key = (role, logits.device)
        if key not in self._indices:  # a list would be copied to the device in every step
            self._indices[key] = torch.tensor(chosen, device=logits.device)
        return logits.index_select(axis, self._indices[key])


def _class_numbers(name: str, chosen: Sequence[int]) -> list[int]:
    numbers = [int(one) for one in chosen]
    if not numbers or min(numbers) < 0:
        raise ValueError(f"Expected {name} to be numbers of classes from 0 on, got {numbers}.")
    twice = sorted({one for one in numbers if numbers.count(one) > 1})
    if twice:
        raise ValueError(f"{name} names the class {twice[0]} twice; each class is compared once.")
    return numbers


def _as_logits(outputs: Tensor, kind: TeacherOutputs, axis: int) -> Tensor:
    """Return unnormalised scores; of a single output, and of labels, the log odds."""
    if kind == "logits":
        return outputs
    highest = 1.0 - torch.finfo(outputs.dtype).eps / 2  # the number below 1: a sigmoid of 17 is 1 in float32
    if outputs.dtype in (torch.float16, torch.bfloat16):
        outputs = outputs.float()
    single = outputs.ndim < 2 or outputs.shape[axis] == 1
    if kind == "log_probabilities":
        if not single:
            return outputs
        outputs = outputs.exp()
    outputs = outputs.clamp_min(torch.finfo(outputs.dtype).tiny)
    if single or kind != "probabilities":
        outputs = outputs.clamp_max(highest)
        return outputs.log() - torch.log1p(-outputs)
    return outputs.log()


def kind_of_probabilities(outputs: Tensor, axis: int = 1) -> Literal["probabilities", "log_probabilities"] | None:
    """Return whether outputs of several classes are probabilities, or their logarithms: each row adds up to one.

    Args:
        outputs: What a network returned.
        axis: The axis of the classes.

    Example:
        >>> kind_of_probabilities(torch.tensor([[0.25, 0.75], [0.5, 0.5]]))
        'probabilities'
        >>> kind_of_probabilities(torch.tensor([[1.0, 0.0], [3.0, -2.0]])) is None
        True
    """
    if outputs.ndim < 2 or outputs.shape[axis] < 2 or not outputs.numel() or outputs.is_meta:
        return None
    if not outputs.is_floating_point():
        return None
    tolerance = 2e-2 if outputs.dtype in (torch.float16, torch.bfloat16) else 1e-3
    rows = outputs.detach().double()
    if bool((rows >= 0).all()):
        return "probabilities" if bool(((rows.sum(axis) - 1).abs() < tolerance).all()) else None
    if bool((rows <= tolerance).all()) and bool((rows.logsumexp(axis).abs() < tolerance).all()):
        return "log_probabilities"
    return None
