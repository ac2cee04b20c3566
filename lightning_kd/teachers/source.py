"""Teachers that come from the student itself, for self-distillation."""

from abc import ABC, abstractmethod
from typing import ClassVar

import torch.distributed as dist
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer
from torch import nn
from torch.distributed.tensor import DTensor

from lightning_kd.capture.networks import copied
from lightning_kd.capture.outputs import Outputs
from lightning_kd.distributed.gather import is_distributed
from lightning_kd.distributed.whole_state import is_sharded
from lightning_kd.schedules import Moment
from lightning_kd.teachers.base import Teacher
from lightning_kd.teachers.frozen import FrozenTeacher


class TeacherSource(Callback, ABC):
    """A callback that makes the teacher out of the student; give the module or the callback door no teacher then.

    The doors find it among the Trainer's callbacks. A run has at most one.
    """

    shardable: ClassVar[bool] = False
    """Whether student and teacher may be split over processes by FSDP2."""
    origin: Moment = Moment()
    """Where schedules and stages count from: the beginning of the fit, or of a generation."""
    teacher: FrozenTeacher | None = None
    student: nn.Module | None = None

    def provide(self, student: nn.Module) -> FrozenTeacher:
        """Return the teacher: a copy of the student, or the one that was made of this student before."""
        if self.teacher is None or self.student is not student:
            self.student, self.teacher = student, FrozenTeacher(copied(student))
            self.teacher.changes = True
        return self.teacher

    @abstractmethod
    def begin(self, losses: nn.Module, trainer: Trainer) -> None:
        """Prepare for a fit, once its losses are built and before a checkpoint is loaded."""

    def start_batch(self, losses: nn.Module, trainer: Trainer) -> bool:
        """Bring the teacher up to date before a training batch.

        Returns:
            Whether student and losses begin anew, so that the optimizers must begin anew too; not by default.
        """
        return False

    def pair(self) -> tuple[nn.Module, FrozenTeacher]:
        """Return student and teacher, or raise a ``RuntimeError`` if no run has asked for the teacher yet."""
        if self.student is None or self.teacher is None:
            raise RuntimeError(
                f"{type(self).__name__} has no teacher yet; fit a DistillationModule without a teacher, or use a "
                "DistillationCallback(teacher=None, ...)."
            )
        return self.student, self.teacher


def find_source(
    trainer: Trainer, known: TeacherSource | None, teacher: Teacher | None, student: nn.Module
) -> TeacherSource | None:
    """Return the callback of a Trainer that makes the teacher of the student, ``None`` if there is none.

    Args:
        trainer: The Trainer.
        known: The callback that has made the teacher in an earlier fit.
        teacher: The teacher that there is already.
        student: The student.

    Raises:
        MisconfigurationException: If several callbacks make a teacher, there is a teacher besides, or the student is
            split by now.
    """
    sources = [c for c in trainer.callbacks if isinstance(c, TeacherSource)]  # type: ignore[attr-defined]
    if not sources or sources[0] is known:
        return known
    if len(sources) > 1:
        names = " and ".join(type(one).__name__ for one in sources)
        raise MisconfigurationException(f"{names} make the teacher of the student; a run takes at most one.")
    name = type(sources[0]).__name__
    if teacher is not None:
        raise MisconfigurationException(
            f"{name} makes the teacher of the student, but there is a teacher besides; pass teacher=None, or take the "
            "callback away."
        )
    if is_sharded(student):
        raise MisconfigurationException(
            f"{name} copies the student, which configure_model has split by now; use DistillationModule, which copies "
            "first."
        )
    return sources[0]


def check_classes(source: TeacherSource, options: Outputs) -> None:
    """Raise a ``MisconfigurationException`` if a teacher that is made of the student is given other classes."""
    theirs, own = options.teacher_classes, options.student_classes
    if theirs is not None and list(theirs) != list(range(len(theirs)) if own is None else own):
        raise MisconfigurationException(
            f"teacher_classes: {type(source).__name__} makes the teacher of the student, so both have the same classes "
            "in the same order. Leave out teacher_classes, or give student_classes the same list."
        )


def same_everywhere(module: nn.Module, *, buffers_only: bool = False) -> None:
    """Give every process the first process's weights."""
    if not is_distributed():
        return
    tensors = list(module.buffers()) if buffers_only else [*module.parameters(), *module.buffers()]
    for tensor in tensors:
        if not isinstance(tensor, DTensor):  # of which each process has its own part
            dist.broadcast(tensor.data, src=0)
