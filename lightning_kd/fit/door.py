"""What both doors share: the options that say how outputs are read and what the teacher is given, and their hooks."""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Protocol

import torch
from torch import Tensor

from lightning_kd.capture import batch as batches
from lightning_kd.capture.networks import original
from lightning_kd.capture.outputs import Outputs
from lightning_kd.configurable import describe
from lightning_kd.fit.run import DistillationRun
from lightning_kd.schedules import Scalar, Schedule
from lightning_kd.teachers.inputs import Inputs, TeacherInputs, TeacherView, as_view, described


class ReadsOutputs:
    """A door that reads outputs as its options say, unless a user overrides its hooks."""

    output_options: Outputs
    """How the outputs of student and teacher are read."""
    run: DistillationRun
    teacher_view: TeacherView | None
    """What makes the teacher's inputs of the student's, ``None`` if they are the same."""

    def teacher_inputs(self, batch: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Inputs:
        """Return the teacher's (args, kwargs), by default what its ``forward`` takes; override for another view."""
        view = self.teacher_view
        if view is None:
            return self.run.step.of_teacher(batch, args, kwargs)
        if isinstance(view, TeacherInputs) and not view.ready:
            teacher = self.run.teacher
            view.see_networks(original(self.run.student), None if teacher is None else teacher.module)
        return view.of_batch(batch, args, kwargs) if isinstance(view, TeacherInputs) else view(args, kwargs)

    def logits_of(self, output: Any) -> Tensor | None:
        """Find the logits in a model's output; override for outputs of another form."""
        return batches.logits_of(output, self.output_options.logits)

    def _take_view(self, view: TeacherView | Mapping[str, Any] | str | None) -> None:
        """Keep what makes the teacher's inputs.

        Raises:
            ValueError: If it has no effect, because the class has a ``teacher_inputs`` of its own.
        """
        self.teacher_view = as_view(view)
        if view is not None and type(self).teacher_inputs is not ReadsOutputs.teacher_inputs:
            raise ValueError(
                f"teacher_inputs=... has no effect, since {type(self).__name__} overrides the method teacher_inputs; "
                "call the parts there, or leave one of the two out."
            )

    def plain_output_options(self) -> dict[str, Any]:
        """Return the options that were given as plain data for a checkpoint."""
        view = self.teacher_view
        return self.output_options.plain() | ({} if view is None else {"teacher_inputs": described(view)})


class HasOptions(Protocol):
    """A module whose options a checkpoint holds."""

    task_weight: Scalar
    run: DistillationRun

    @property
    def lr_interval(self) -> str:
        """When the scheduler steps."""

    def plain_output_options(self) -> dict[str, Any]:
        """Return how outputs are read."""


def options_of(module: HasOptions, dtype: torch.dtype | None) -> dict[str, Any]:
    """Return a module's options as plain data for a checkpoint, from which the module can be made again.

    Args:
        module: The module.
        dtype: Format that the teacher computes in, if one was given.
    """
    weight = module.task_weight
    options: dict[str, Any] = {
        "task_weight": describe(weight) if isinstance(weight, Schedule) else weight,
        "lr_interval": module.lr_interval,
        **module.plain_output_options(),
    }
    if dtype is not None:
        options["teacher_dtype"] = str(dtype).removeprefix("torch.")
    with suppress(AttributeError, TypeError):  # a loss that is not plain data is passed again when loading
        options["losses"] = [describe(loss) for loss in module.run.objective.named.values()] or None
    return options
