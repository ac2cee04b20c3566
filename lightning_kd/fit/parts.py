"""The parts of a distillation that a user may replace between two fits, and what follows from a replacement."""

from typing import Any, cast

from lightning.pytorch import LightningModule
from torch import nn

from lightning_kd.capture.batch import Hooks
from lightning_kd.fit.run import DistillationRun
from lightning_kd.losses.naming import NamedLosses, name_losses
from lightning_kd.teachers.frozen import as_teacher

RUN_IS_MADE_OF = ("student", "teacher", "losses", "task_weight")
"""Attributes of a module that its run is made of, so that another value needs another run."""


class ReplaceableParts(LightningModule):
    """A module whose student, teacher, losses and weights may be assigned between two fits; the next fit takes them."""

    run: DistillationRun

    @property
    def teacher(self) -> nn.Module | None:
        """The frozen teacher, ``None`` without one, or if it is no network."""
        return None if self.run.teacher is None else self.run.teacher.module

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; what the run is made of gives a new run, and is refused while a fit goes on."""
        if name in RUN_IS_MADE_OF and "run" in self.__dict__:
            self._replace_part(name, value)
        else:
            super().__setattr__(name, value)

    def _replace_part(self, name: str, value: Any) -> None:
        before = self.run
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
        if parts["losses"] is before.objective.losses:  # they are built for these sizes
            run.setup.go_on_from(before.setup)
        if name != "teacher":  # which the run alone holds
            super().__setattr__(name, value)
        self.run = run


def check_between_fits(run: DistillationRun | None, name: str, owner: str) -> None:
    """Raise a ``RuntimeError`` if a part is to be replaced while a fit goes on."""
    if run is not None and run.step.capture.attached:
        raise RuntimeError(
            f"{owner}.{name} cannot be replaced while it is set up for a Trainer's run or a loop of your own; assign "
            "it before the fit or after it. For weights that change, give a schedule."
        )
