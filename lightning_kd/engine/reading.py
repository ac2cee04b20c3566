"""What is read of the outputs of student and teacher: the task's logits, those that are compared, and heads."""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

from torch import Tensor

from lightning_kd.capture.batch import Hooks
from lightning_kd.capture.call import Call
from lightning_kd.capture.classes import in_order
from lightning_kd.capture.heads import Head, SeveralHeadsError, head_in, head_of, heads_of, is_output
from lightning_kd.losses.base import DistillationLoss
from lightning_kd.losses.tokens.mean import TokenMean
from lightning_kd.losses.tokens.sparse import SparseLogits
from lightning_kd.teachers.base import NO_LESSON, Lesson


class Reading:
    """Reads outputs as the door was told to.

    Args:
        hooks: The door, with its options.
        losses: The losses, which name layers and heads.
    """

    def __init__(self, hooks: Hooks, losses: Iterable[DistillationLoss]) -> None:
        self.hooks = hooks
        losses = list(losses)
        self.layers = {
            role: sorted({n for loss in losses for n in getattr(loss, f"{role}_layers") if is_output(n)})
            for role in ("student", "teacher")
        }
        """The outputs that losses read as layers, by role."""
        self.has_layers = any(self.layers.values())
        self.has_heads = any(map(named_heads, losses))
        """Whether a loss compares another output than the one that the task reads."""
        self.needs_logits = {role: any(reads_logits(loss, role) for loss in losses) for role in ("student", "teacher")}
        """Whether a loss reads the logits of a role; if not, those that are not known are not missed."""
        self.layers_only = not self.needs_logits["teacher"] and not self.layers["teacher"] and not self.has_heads
        """Whether no loss reads the teacher's output."""
        self.axis = -1 if any(isinstance(loss, TokenMean) for loss in losses) else 1
        """The axis of the classes in the teacher's output: the last where a loss reads tokens (B, T, V)."""
        self.class_order: Tensor | None = None
        """Where the teacher has each class of the student, ``None`` if both have the same order."""

    def student_logits(self, call: Call, *, training: bool) -> Tensor | None:
        """Return the student's logits that the task reads, ``None`` if it has none or was not called."""
        if not call.called:
            return None
        head = self.hooks.output_options.logits
        if head is not None:
            _check_has_heads(call.output, head, training)
        logits_of = self.hooks.logits_of if self.needs_logits["student"] else self.known_logits
        call.logits = logits_of(call.output)
        return call.logits

    def known_logits(self, output: Any) -> Tensor | None:
        """Return the logits in an output of the student, ``None`` if it is not known which they are."""
        with suppress(SeveralHeadsError):
            return self.hooks.logits_of(output)
        return None

    def teacher_logits(self, lesson: Lesson) -> Tensor | None:
        """Return the teacher's logits in the form in which they are compared with the student's."""
        if lesson is NO_LESSON or lesson.output is None or isinstance(lesson.output, SparseLogits):
            return None
        try:
            return self._of_teacher(lesson)
        except SeveralHeadsError:
            if self.needs_logits["teacher"]:
                raise
            return None

    def head(self, call: Call, lesson: Lesson, training: bool, role: str, head: Head) -> Tensor | None:
        """Return one of several outputs of a role, in the form in which student and teacher are compared."""
        options = self.hooks.output_options
        if role == "teacher":
            return None if lesson is NO_LESSON else self._of_teacher(lesson, head)
        if not call.called or head is None:
            return self.student_logits(call, training=training)
        _check_has_heads(call.output, head, training)
        logits = head_of(call.output, head)
        compared = options.compared(logits)
        return logits if compared is None else compared

    def features(self, role: str, lesson: Lesson) -> dict[str, Tensor]:
        """Return the layers of a role, with its outputs where a loss reads these as layers."""
        names = self.layers[role]
        if not names or lesson is NO_LESSON or (role == "student" and isinstance(lesson, Call) and not lesson.called):
            return lesson.features
        return lesson.features | {name: self._output(role, lesson.output, name) for name in names}

    def _of_teacher(self, lesson: Lesson, head: Head = None) -> Tensor | None:
        """Return the teacher's logits of a head, with the classes in the student's order."""
        axis = self.axis if head is None else 1  # losses of tokens read no other head
        logits = self.hooks.output_options.of_teacher(lesson.output, self.hooks.logits_of, head, axis=axis)
        return logits if logits is None or self.class_order is None else in_order(logits, self.class_order)

    def _output(self, role: str, output: Any, name: str) -> Tensor:
        options, head = self.hooks.output_options, head_in(name)
        if head is not None:
            return head_of(output, head)
        value = options.as_returned(output, self.hooks.logits_of) if role == "teacher" else self.hooks.logits_of(output)
        if value is None:
            raise ValueError(
                f"A loss reads the {role}'s output, but which of its tensors is meant is not known{has_heads(output)}."
            )
        return value


def reads_logits(loss: DistillationLoss, role: str) -> bool:
    """Whether a loss reads those logits of a role that the task reads, and not another output by name."""
    if role in named_heads(loss):
        return False
    return loss.needs_teacher_logits if role == "teacher" else loss.needs_student_logits or not loss.student_layers


def named_heads(loss: DistillationLoss) -> Mapping[str, Head]:
    """Return which of several outputs a loss reads of each role; of attention losses ``heads`` is another option."""
    heads = getattr(loss, "heads", None)
    return heads if isinstance(heads, Mapping) else {}


def teacher_heads(losses: Iterable[DistillationLoss]) -> tuple[int | str, ...]:
    """Return which of several outputs of the teacher the losses read by name, besides the one that the task reads.

    Args:
        losses: The losses that read layers and outputs.
    """
    losses = list(losses)
    named = [named_heads(loss).get("teacher") for loss in losses]
    named += [head_in(name) for loss in losses for name in loss.teacher_layers if is_output(name)]
    return tuple(dict.fromkeys(head for head in named if head is not None))


def has_heads(output: Any) -> str:
    """Return the heads that an output has, and how to name one, in words; nothing if it has none."""
    heads = heads_of(output)
    usable = [name for name, value in heads.items() if value.ndim]  # a loss of the network's own is none
    return f" (it has {list(heads)}; name one, such as logits={usable[0]!r})" if usable else ""


def _check_has_heads(output: Any, head: Head, training: bool) -> None:
    """Raise a ``ValueError`` if a head is named of a student that returns one tensor in training."""
    if training and isinstance(output, Tensor):
        raise ValueError(
            f"The head {head!r} is named, but the student returned a single tensor of shape {tuple(output.shape)} in "
            "training, so it has no heads; leave the name out."
        )
