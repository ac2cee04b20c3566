"""The parts of a distillation that a user may replace between two fits, and what follows from a replacement."""

from typing import Any, Literal, cast

from lightning.pytorch import LightningModule
from torch import nn

from lightning_kd.capture.batch import Hooks
from lightning_kd.engine.begin_anew import forget_layers
from lightning_kd.fit.run import DistillationRun
from lightning_kd.losses.naming import NamedLosses, name_losses
from lightning_kd.metrics.given import Metrics
from lightning_kd.metrics.task import Task
from lightning_kd.teachers.frozen import as_teacher

RUN_IS_MADE_OF = ("student", "teacher", "losses", "task_weight")
"""Attributes of a module that its run is made of, so that another value needs another run."""

EVALUATION_READS = ("task_loss", "metrics")
"""Attributes of a module that its evaluations read."""

_WATCHED = frozenset({*RUN_IS_MADE_OF, *EVALUATION_READS})


class ReplaceableParts(LightningModule):
    """A module whose parts may be assigned between two fits; the next fit takes them."""

    run: DistillationRun
    task_loss: nn.Module | Literal["model"] | None
    metrics: Metrics

    @property
    def teacher(self) -> nn.Module | None:
        """The frozen teacher, ``None`` without one, or if it is no network."""
        return None if self.run.teacher is None else self.run.teacher.module

    def trained_parameters(self) -> list[nn.Parameter]:
        """Return what the optimizer gets: parameters of the student, then of the losses, then of what else trains.

        Else are a task's loss with weights of its own, such as the class centres of ArcFace, and modules that a
        subclass adds. Metrics, the teacher and whatever has ``requires_grad=False`` do not train. Read it in a
        ``configure_optimizers`` of your own.

        Example:
            >>> from lightning_kd import DistillationModule
            >>> module = DistillationModule(nn.Linear(4, 3), task_loss=nn.CrossEntropyLoss())
            >>> [tuple(parameter.shape) for parameter in module.trained_parameters()]
            [(3, 4), (3,)]
        """
        first = [*self.run.student.parameters(), *self.run.objective.losses.parameters()]  # as older checkpoints do
        apart = (part for part in (self.metrics, self.teacher) if isinstance(part, nn.Module))
        left_out = {parameter for part in apart for parameter in part.parameters()}.difference(first)
        every = dict.fromkeys((*first, *(one for one in self.parameters() if one not in left_out)))
        return [parameter for parameter in every if parameter.requires_grad]

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; what the run is made of gives a new run, and is refused while a fit goes on."""
        if (value is None or type(value) is str) and name in self.__dict__ and name not in _WATCHED:
            # Lightning 2.6 sets the name of each hook on the module, 44 times a step; torch's way costs 0.03 ms more
            object.__setattr__(self, name, value)
        elif name in RUN_IS_MADE_OF and "run" in self.__dict__:
            self._replace_part(name, value)
        else:
            if name == "task_loss" and isinstance(value, str) and name not in self.__dict__ and hasattr(self, name):
                delattr(self, name)  # torch refuses a name in the place of a module
            super().__setattr__(name, value)
            if name in EVALUATION_READS and "run" in self.__dict__:
                self._tell_task()

    def _replace_part(self, name: str, value: Any) -> None:
        before = self.run
        if name == "student" and before.step.capture.attached and not before.started:
            # a precision plugin replaces the student's class after set-up; the hooks follow as training starts
            super().__setattr__(name, value)
            return
        check_between_fits(before, name, type(self).__name__)
        # what a callback has made of the student, it makes again
        teacher = None if before.clock.source is not None else before.teacher
        parts: dict[str, Any] = {"student": before.student, "teacher": teacher, "losses": before.objective.losses}
        parts["task_weight"] = before.objective.task_weight
        if name == "losses" and not isinstance(value, NamedLosses):
            value = NamedLosses() if value is None and teacher is None else name_losses(value or [])
        parts[name] = as_teacher(value) if name == "teacher" else value
        hooks = cast(Hooks, self)  # the door that derives from this class
        run = DistillationRun(parts["student"], parts["teacher"], parts["losses"], hooks, parts["task_weight"])
        if name == "student":  # what the losses remember is of the other student
            forget_layers(run.objective.losses)
        elif parts["losses"] is before.objective.losses:  # they are built for these sizes
            run.setup.go_on_from(before.setup)
        if name != "teacher":  # which the run alone holds
            super().__setattr__(name, value)
        self.run = run
        self._tell_task()

    def _tell_task(self) -> None:
        self.run.evaluation.take(self.metrics, Task.of_loss(self.task_loss))


def check_between_fits(run: DistillationRun | None, name: str, owner: str) -> None:
    """Raise a ``RuntimeError`` if a part is to be replaced while a fit goes on."""
    if run is not None and run.step.capture.attached:
        raise RuntimeError(
            f"{owner}.{name} cannot be replaced while it is set up for a Trainer's run or a loop of your own; assign "
            "it before the fit or after it. For weights that change, give a schedule."
        )
