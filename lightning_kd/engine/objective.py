"""Which losses train at a moment, and how their values are added: the one answer to "what trains now"."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from lightning_kd.losses.base import DistillationLoss, StepTensors
from lightning_kd.losses.naming import NamedLosses
from lightning_kd.losses.stage import Stage
from lightning_kd.losses.tensors import add_up
from lightning_kd.schedules import Moment, Scalar, Schedule, extremes, value_at


@dataclass(frozen=True, slots=True)
class Goal:
    """What a step evaluates and adds up. The main training and a first stage are two values of it.

    Args:
        active: The losses that read tensors themselves, with their dotted names.
        evaluations: What evaluates each part of the sum, by name and in order.
        components: The losses whose weights the sum takes; empty in a first stage, which adds its parts as they are.
        needs_teacher: Whether a loss reads anything of the teacher.
        runs_student: Whether the student is called.
        learning_rates: Learning rates that first stages set, in the order of their losses.
    """

    active: tuple[tuple[str, DistillationLoss], ...]
    evaluations: Mapping[str, Callable[[StepTensors], Tensor]]
    components: Mapping[str, DistillationLoss]
    needs_teacher: bool
    runs_student: bool = True
    in_stage: bool = False
    learning_rates: tuple[float, ...] = ()


class Objective:
    """The losses of a run with the task's weight, at any moment of the run.

    Args:
        losses: Loss components by name, see ``name_losses``.
        task_weight: Factor of the task term, a number or a schedule.
    """

    def __init__(self, losses: NamedLosses, task_weight: Scalar = 1.0) -> None:
        self.losses = losses
        self.task_weight = task_weight
        self.named = dict(losses.items())
        """The losses that are added by name, in order."""
        self.find_leaves()
        self.needs_target = any(loss.needs_target for loss in self.components)
        self.needs_index = any(loss.needs_index for loss in self.components)
        self.reads_logits = any(not one.student_layers or one.needs_student_logits for one in self.components)
        self._timed = [loss for loss in self.named.values() if loss.changes_over_time]
        self._goals: dict[bool, Goal] = {}
        self._task_weight_now = value_at(task_weight, Moment())
        self.teacher_counts = self._teacher_counts()
        """Whether a loss that reads the teacher has a weight now, or remembers what the teacher says."""

    def find_leaves(self) -> None:
        """Find the losses that read layers or logits themselves, in ``leaves``: a loss may have chosen another."""
        self.leaves = [
            (f"{name}.{inner}" if inner else name, leaf)
            for name, loss in self.named.items()
            for inner, leaf in loss.leaves()
        ]
        """The losses that read layers or logits themselves, with their dotted names, in order."""
        self._staged = [(name, leaf) for name, leaf in self.leaves if leaf.stage is not None]

    @property
    def components(self) -> list[DistillationLoss]:
        """The losses that read layers or logits themselves, those inside a hybrid included, in order."""
        return [loss for _, loss in self.leaves]

    @property
    def changes_over_time(self) -> bool:
        """Whether a weight or a loss changes over the run."""
        return bool(self._timed) or isinstance(self.task_weight, Schedule)

    @property
    def may_leave_out_teacher(self) -> bool:
        """Whether a moment may come at which no loss that reads the teacher has a weight."""
        taught = self._taught()
        return bool(taught) and all(0.0 in extremes(loss.weight) and not _remembers(loss) for loss in taught)

    @property
    def stages(self) -> list[Stage]:
        """The stages that the losses want before the main training."""
        return [loss.stage for _, loss in self._staged if loss.stage is not None]

    def forget_goals(self) -> None:
        """Find out anew what trains: a stage has got its length, or a loss its layers."""
        self._goals.clear()

    def set_moment(self, moment: Moment) -> None:
        """Give every loss, and the weight of the task, the moment that the run has reached."""
        self._task_weight_now = value_at(self.task_weight, moment)
        for loss in self._timed:
            loss.set_moment(moment)
        self.teacher_counts = self._teacher_counts()

    def stage_at(self, moment: Moment, teacher_ready: bool) -> list[tuple[str, DistillationLoss]]:
        """Return the losses, with their names, whose first stage includes a moment.

        Args:
            moment: How far the run has come.
            teacher_ready: Whether there is something to learn from a teacher; without it losses that need one wait.
        """
        return [
            (name, loss)
            for name, loss in self._staged
            if loss.stage is not None and loss.stage.includes(moment) and (teacher_ready or not loss.needs_teacher)
        ]

    def at(self, moment: Moment, teacher_ready: bool) -> Goal:
        """Return what trains at a moment: the losses of the first stage that includes it, else the main training."""
        staged = self.stage_at(moment, teacher_ready)
        return self._first_stage(staged) if staged else self.main(teacher_ready)

    def main(self, teacher_ready: bool) -> Goal:
        """Return what the main training trains; the same object until a stage or a layer is settled anew."""
        if teacher_ready not in self._goals:
            self._goals[teacher_ready] = self._main(teacher_ready)
        return self._goals[teacher_ready]

    def total(self, goal: Goal, parts: Mapping[str, Tensor]) -> Tensor:
        """Add up the parts of a step, ``"task"`` among them: from left to right, each with its weight.

        The order is part of exactness: another one gives other last bits.

        Raises:
            ValueError: If there is nothing to add.
        """
        if goal.in_stage:
            return add_up(list(parts.values()))
        total = None
        for name, value in parts.items():
            weight = self._task_weight_now if name == "task" else goal.components[name].weight_now
            term = value if weight == 1.0 else weight * value
            total = term if total is None else total + term
        if total is None:
            raise ValueError("There is neither a task loss nor a distillation loss to train with.")
        return total

    def weights(self) -> dict[str, float]:
        """Return the weight of each part at this moment, the task's first."""
        return {"task": self._task_weight_now, **{name: loss.weight_now for name, loss in self.named.items()}}

    def details(self, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return what the losses of a step show of their inside, under the name of the loss and their own."""
        return {
            f"{name}/{detail}": value
            for name, loss in self.named.items()
            if loss.details and name in parts
            for detail, value in loss.details.items()
        }

    def _taught(self) -> list[DistillationLoss]:
        return [loss for loss in self.named.values() if loss.needs_teacher]

    def _teacher_counts(self) -> bool:
        taught = self._taught()
        return not taught or any(loss.weight_now != 0.0 or _remembers(loss) for loss in taught)

    def _main(self, teacher_ready: bool) -> Goal:
        active = tuple((name, loss) for name, loss in self.leaves if loss.trains_now(teacher_ready))
        added = {name: loss for name, loss in self.named.items() if loss.trains_now(teacher_ready)}
        return Goal(
            active=active,
            evaluations={name: loss.evaluate for name, loss in added.items()},
            components=added,
            needs_teacher=any(loss.needs_teacher for _, loss in active),
        )

    def _first_stage(self, staged: list[tuple[str, DistillationLoss]]) -> Goal:
        stages = [loss.stage for _, loss in staged if loss.stage is not None]
        return Goal(
            active=tuple(staged),
            evaluations={name: loss.evaluate_stage for name, loss in staged},
            components={},
            needs_teacher=any(loss.needs_teacher for _, loss in staged),
            runs_student=any(stage.runs_student for stage in stages),
            in_stage=True,
            learning_rates=tuple(stage.lr for stage in stages if stage.lr is not None),
        )


def _remembers(loss: DistillationLoss) -> bool:
    """Whether a loss learns of the teacher's answers beside its value, such as by a memory bank."""
    return any(True for _ in loss.buffers()) or any(leaf.needs_index for _, leaf in loss.leaves())
