"""How far a run has come: steps, epochs, generations, first stages, and what trains now."""

from lightning.pytorch import LightningModule, Trainer
from lightning_utilities.core.rank_zero import rank_zero_info

from lightning_kd.engine.objective import Goal
from lightning_kd.engine.step import TrainingStep
from lightning_kd.fit.optimizers import OptimizerSnapshot
from lightning_kd.schedules import Moment
from lightning_kd.teachers.source import TeacherSource


class Clock:
    """Gives the losses the moment of the run, and begins generations and the main training where they are due.

    Args:
        step: The training step, whose losses follow the clock.
    """

    def __init__(self, step: TrainingStep) -> None:
        self.step = step
        self.tuning = False
        """Whether steps are a tuner's trials: those between set-up and the start of the fit."""
        self.source: TeacherSource | None = None
        """The callback that makes the teacher of the student, if there is one."""
        self._origin = Moment()
        self._stage: Goal | None = None
        self._snapshot: OptimizerSnapshot | None = None
        self._told = False

    @property
    def goal(self) -> Goal:
        """What trains now."""
        objective = self.step.objective
        return self._stage or objective.main(self.step.teacher_ready and objective.teacher_counts)

    def begin(self) -> None:
        """Forget an earlier fit, or one that was broken off, and expect a tuner's trials."""
        self.tuning = True
        self._origin = Moment()
        self.set_moment(Moment())
        self._stage = None

    def start(self, trainer: Trainer) -> None:
        """Begin the training itself."""
        self.tuning = False
        self._told = False
        self._snapshot = OptimizerSnapshot(trainer)
        if not self.step.objective.changes_over_time:
            self.tell_left_out()

    def start_batch(self, module: LightningModule, batch_idx: int) -> None:
        """Begin a generation or leave a first stage where it is due, and give the losses the moment of the run."""
        if self.tuning:
            return
        trainer = module.trainer
        if self.source is not None:
            if self.source.start_batch(self.step.objective.losses, trainer):
                self._restart_optimizers(trainer)
            self._origin = self.source.origin
        self.tell_teacher(module)
        if not self.step.objective.changes_over_time:
            return
        moment = self._moment(module)
        self.set_moment(moment)
        for rate in self.goal.learning_rates:
            OptimizerSnapshot.set_lr(trainer, rate)
        self.tell_left_out()
        if self._stage is None and self._leaves_stages(moment, batch_idx):
            self._restart_optimizers(trainer)

    def tell_teacher(self, module: LightningModule) -> None:
        """Give a teacher that changes over time the moment of the run, before a batch or an evaluation in a fit."""
        teacher = self.step.teacher
        if teacher is not None and teacher.changes_over_time and not self.tuning:
            teacher.set_moment(self._moment(module))

    def tell_left_out(self) -> None:
        """Say once that the teacher is not asked where no loss that reads it has a weight."""
        if self._stage is None and not self._told and not self.step.objective.teacher_counts:
            self._told = True
            rank_zero_info(
                "The losses that read the teacher have weight 0 now, so it is not asked, and their parts are not "
                "logged, until one has a weight again."
            )

    def set_moment(self, moment: Moment) -> None:
        """Give losses and teacher the moment that the run has reached."""
        if self.step.teacher is not None:
            self.step.teacher.set_moment(moment)
        objective = self.step.objective
        objective.set_moment(moment)
        goal = objective.at(moment, self.step.teacher_ready)
        self._stage = goal if goal.in_stage else None

    def was_in_stage(self, module: LightningModule) -> bool:
        """Whether the last step belonged to a first stage."""
        if self.tuning or not self.step.objective.changes_over_time:
            return False
        return self._in_stage(self._moment(module, steps_ago=1))

    def _moment(self, module: LightningModule, steps_ago: int = 0) -> Moment:
        """Return how far the run has come since its beginning, or that of its generation."""
        return Moment(module.global_step - steps_ago - self._origin.step, module.current_epoch - self._origin.epoch)

    def _in_stage(self, moment: Moment) -> bool:
        return bool(self.step.objective.stage_at(moment, self.step.teacher_ready))

    def _leaves_stages(self, moment: Moment, batch_idx: int) -> bool:
        before = [Moment(moment.step - 1, moment.epoch)]
        if batch_idx == 0:
            before.append(Moment(moment.step, moment.epoch - 1))
        return any(map(self._in_stage, before))

    def _restart_optimizers(self, trainer: Trainer) -> None:
        assert self._snapshot is not None, "a fit has begun"
        self._snapshot.restore(trainer)
