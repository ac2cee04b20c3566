"""What losses of class scores share: checks in the user's words, and class ids of which some are missing."""

from abc import ABC
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_kd.capture.heads import Head
from lightning_kd.losses.base import COMPARED, LOGITS, DistillationLoss, Shape, StepTensors
from lightning_kd.losses.checks import check_same_shape
from lightning_kd.metrics.task import without_column
from lightning_kd.schedules import Scalar

IGNORE_INDEX = -100
"""The class id of a sample without a label, as in ``torch.nn.functional.cross_entropy``."""
_REMEDY = "give both networks heads for the same classes and positions, or distil a layer with HintLoss"
_CHOOSE = (
    "give the module or the callback teacher_classes=[...], the teacher's class for each class of the student; if the "
    "student has classes that the teacher does not know, student_classes=[...]; or distil a layer with HintLoss"
)


class LogitLoss(DistillationLoss, ABC):
    """A loss that compares the logits of student and teacher, which score the same classes.

    Args:
        head: Which of several outputs of both networks to compare, by name or number; by default the one that the task
            reads. A network that returns one tensor has no other.
        teacher_head: Which of several outputs of the teacher, if it has another name there.
        weight: Factor of this part in the total loss, >= 0.
    """

    needs_teacher_logits = True
    takes_one_logit: ClassVar[bool] = True
    """A single logit, the log odds of a yes, says something to the loss."""

    def __init__(self, *, head: Head = None, teacher_head: Head = None, weight: Scalar = 1.0) -> None:
        super().__init__(weight=weight)
        self.head = head
        self.teacher_head = teacher_head

    @property
    def heads(self) -> dict[str, Head]:
        """The head that is read of each role, if it is another than the task's."""
        teacher = self.head if self.teacher_head is None else self.teacher_head
        named: dict[str, Head] = {"student": self.head, "teacher": teacher}
        return {role: head for role, head in named.items() if head is not None}

    def logit_shapes(
        self, student_shapes: Mapping[str, Shape], teacher_shapes: Mapping[str, Shape]
    ) -> tuple[Shape | None, Shape | None]:
        """Return the shapes of the logits of both sides that are compared, ``None`` where they are not known."""
        own, its = (head_key(self.heads[role]) if role in self.heads else LOGITS for role in ("student", "teacher"))
        own = COMPARED if own == LOGITS and COMPARED in student_shapes else own
        return student_shapes.get(own), teacher_shapes.get(its)

    def evaluate(self, step: StepTensors) -> Tensor:
        """Pick the logits of the heads out of a training step and return the unweighted scalar."""
        if self.head is None and self.teacher_head is None:
            return super().evaluate(step)
        heads = self.heads
        if step.head_of is not None:
            read = {role: step.head_of(role, head) for role, head in heads.items()}
            step = replace(step, teacher_logits=read["teacher"])
            if "student" in read:
                step = replace(step, student_logits=read["student"], compared_logits=None)
        return super().evaluate(step)

    def build(self, student_shapes: Mapping[str, Shape], teacher_shapes: Mapping[str, Shape]) -> None:
        """Check that both networks score the same classes.

        Args:
            student_shapes: Holds the shape of the student's logits.
            teacher_shapes: Holds the shape of the teacher's logits.

        Raises:
            ValueError: If the class counts or the positions differ.
        """
        student, teacher = self.logit_shapes(student_shapes, teacher_shapes)
        if student is None or teacher is None:
            return
        self.check_shapes(student, teacher)
        if not self.takes_one_logit and student[1:2] == (1,):
            raise ValueError(
                f"{type(self).__name__}: a single logit, of shape student {student} and teacher {teacher}, has no "
                "classes to compare; use KDLoss(binary=True), which compares the odds of a yes."
            )

    def check_shapes(self, student: Shape, teacher: Shape) -> None:
        """Raise a ``ValueError`` at set-up unless outputs of these shapes can be compared."""
        check_logit_shapes(type(self).__name__, student, teacher)


def head_key(head: Head) -> str:
    """Return the key under which :meth:`LogitLoss.build` finds the shape of one of several outputs."""
    return f"<head {head!r}>"


def check_logits(function: str, student: Tensor, teacher: Tensor) -> None:
    """Raise a ``ValueError`` that names both shapes unless both are logits of the same classes and positions."""
    check_class_axis(function, tuple(student.shape), tuple(teacher.shape))
    if student.shape != teacher.shape:
        counts = _class_counts(tuple(student.shape), tuple(teacher.shape))
        check_same_shape(function, student, teacher, f"{counts}: {_REMEDY}")


def check_logit_shapes(loss: str, student: Shape | None, teacher: Shape | None) -> None:
    """Raise a ``ValueError`` at set-up unless both networks score the same classes; unknown shapes pass."""
    if student is None or teacher is None:
        return
    check_class_axis(loss, student, teacher)
    if student[1:] != teacher[1:]:
        shapes = f"logits of shape student {student} and teacher {teacher}"
        if student[1] != teacher[1]:
            raise ValueError(f"{loss}: {_class_counts(student, teacher)}, {shapes}; {_CHOOSE}.")
        raise ValueError(
            f"{loss}: {shapes} score the same {student[1]} classes at other positions. Let both networks return one "
            f"size, such as by nn.Sequential(network, nn.Upsample(size={student[2:]}, mode='bilinear')); or distil a "
            "layer with HintLoss."
        )


def check_class_axis(function: str, student: Shape, teacher: Shape | None = None) -> None:
    """Raise a ``ValueError`` that names the shapes unless the classes are on axis 1."""
    shapes = {"student": student} if teacher is None else {"student": student, "teacher": teacher}
    if {len(shape) for shape in shapes.values()} & {0, 1, 3}:
        got = " and ".join(f"{role} {shape}" for role, shape in shapes.items())
        if any(len(shape) == 1 for shape in shapes.values()):
            raise ValueError(
                f"{function}: expected logits (B, C), got {got}: one number for each sample, without an axis of "
                "classes. If it is the log odds of a yes, override logits_of(output) to return output.unsqueeze(1), "
                "and use KDLoss(binary=True); if it is a number (a regression), use RegressionKDLoss."
            )
        raise ValueError(
            f"{function}: expected logits (B, C) or (B, C, H, W), classes on axis 1, got {got}; "
            "for logits of tokens (B, N, C) use TokenKDLoss, or turn those that are no padding into "
            "(M, C)."
        )


def class_ids(function: str, logits: Tensor, target: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    """Return class ids that can be used as an index on axis 1, and which of them are labels; axis 1 has length 1.

    Ids may have this axis already, such as (B, 1).

    Raises:
        ValueError: If the target holds no class ids or not one for every sample and position.
    """
    if not isinstance(target, Tensor):
        raise ValueError(
            f"{function}: expected class ids, got a target that is a {type(target).__name__}, such as mixup makes; "
            "give soft targets to a loss that takes them, or override unpack_batch to return one id for each sample."
        )
    expected = (*logits.shape[:1], *logits.shape[2:])
    target = without_column(target, logits)
    if target.shape != expected or target.is_floating_point():
        raise ValueError(
            f"{function}: expected class ids of shape {tuple(expected)}, got a target of shape {tuple(target.shape)} "
            f"and type {target.dtype} for logits {tuple(logits.shape)}; turn one-hot rows into ids by argmax(1)."
        )
    target = target.long()  # an unsigned type cannot hold a negative id, and compares as if -100 were 156
    labelled = target != ignore_index
    return torch.where(labelled, target, 0).long().unsqueeze(1), labelled.unsqueeze(1)


def mean_over_labelled(values: Tensor, labelled: Tensor) -> Tensor:
    """Average over the samples and positions that have a label; 0 with a graph if there are none."""
    return torch.where(labelled, values, 0.0).sum() / labelled.sum().clamp_min(1)


def count_labels(target: Tensor, marks: Iterable[int]) -> Tensor:
    """Return how many samples and positions of a target have a label, given the ids that mark those without."""
    ids = target.long()
    labelled = torch.ones_like(ids, dtype=torch.bool)
    for mark in marks:
        labelled &= ids != mark
    return labelled.sum()


def with_one_mark(target: Tensor, mark: int, task_mark: int) -> Tensor:
    """Return class ids in which what the task marks as unlabelled has the mark of a loss.

    Args:
        target: Class ids; anything else is returned unchanged.
        mark: The id that the loss leaves out.
        task_mark: The id that the task's own loss leaves out.
    """
    if task_mark == mark or not isinstance(target, Tensor) or target.is_floating_point():
        return target
    ids = target.long()
    return torch.where(ids == task_mark, mark, ids)


def cross_entropy_of_labelled(logits: Tensor, target: Tensor) -> Tensor:
    """Average the cross entropy over the samples with a label; 0 with a graph if there are none."""
    target = without_column(target, logits).long()
    labelled = (target != IGNORE_INDEX).sum().clamp_min(1)
    return F.cross_entropy(logits, target, ignore_index=IGNORE_INDEX, reduction="sum") / labelled


def _class_counts(student: Shape, teacher: Shape) -> str:
    return f"the teacher has {teacher[1]} classes, the student {student[1]}"


def check_several(function: str, logits: Tensor) -> None:
    """Raise a ``ValueError`` that names the shape if there is a single logit, which has no classes to compare."""
    if logits.shape[1] == 1:
        raise ValueError(
            f"{function}: expected at least 2 classes, got logits of shape {tuple(logits.shape)}; kd_loss compares the "
            "odds of a yes."
        )
