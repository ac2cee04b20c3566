"""A distillation inside a Trainer: hands each moment of a run on to the parts that have something to do then."""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.optim import Optimizer

from lightning_kd.capture.batch import Batch, Hooks, read_if_known
from lightning_kd.capture.call import Call
from lightning_kd.capture.columns import gives_as_is, is_own, several_targets, unused_columns
from lightning_kd.capture.example import zeros_for
from lightning_kd.capture.networks import device_of, is_compiled, original
from lightning_kd.capture.no_trace import leaving_no_trace
from lightning_kd.capture.rows import leaves_of
from lightning_kd.capture.store import Calls
from lightning_kd.distributed.sharding import check_clips, mesh_of
from lightning_kd.distributed.unused_parameters import UnusedParameters
from lightning_kd.engine.checks import check_has_weights, check_learns
from lightning_kd.engine.model_loss import ModelLoss
from lightning_kd.engine.objective import Objective
from lightning_kd.engine.one_answer import OneAnswer
from lightning_kd.engine.own_tokens import check_own_tokens
from lightning_kd.engine.setup import SetUp
from lightning_kd.engine.step import Terms, TrainingStep
from lightning_kd.engine.window import TokenWindow
from lightning_kd.files.checkpoint_io import write_whole_checkpoints
from lightning_kd.fit.as_it_was import AsItWas
from lightning_kd.fit.clock import Clock
from lightning_kd.fit.evaluation import Evaluation
from lightning_kd.fit.first_batch import number_of_samples, rows_and_targets
from lightning_kd.fit.gradients import GradientCheck, with_state_of_weights
from lightning_kd.fit.lines import Lines
from lightning_kd.fit.names import Names
from lightning_kd.fit.neighbours import copy_again, keep_from_ddp, say_what_the_summary_leaves_out, warn_of_eval_mode
from lightning_kd.fit.part_log import PartLog
from lightning_kd.fit.patches import Patches
from lightning_kd.fit.resume.state import ResumeState
from lightning_kd.fit.split import split
from lightning_kd.fit.stages import settle_stages
from lightning_kd.fit.task_watch import TaskWatch
from lightning_kd.fit.whose_step import TrainerSteps
from lightning_kd.losses.naming import NamedLosses
from lightning_kd.schedules import Scalar
from lightning_kd.teachers.base import Teacher
from lightning_kd.teachers.frozen import FrozenTeacher
from lightning_kd.teachers.normalisation import told_difference
from lightning_kd.teachers.own_columns import OwnColumns
from lightning_kd.teachers.source import check_classes, find_source


class DistillationRun:
    """The life of a distillation inside a Trainer; the doors forward their moments to it.

    Args:
        student: The module that learns.
        teacher: Who answers, ``None`` if no loss needs a teacher, or a callback makes it of the student.
        losses: Loss components by name, see ``name_losses``.
        hooks: The door, which answers how batches and outputs are read.
        task_weight: Factor of the task term, a number or a schedule.
        calls: Which calls of the student count; ``None`` if the door makes the one call itself.
        patches: The list of what the door has put on other objects, which the run goes on with.

    Raises:
        ValueError: If a layer does not exist, or student and teacher share parameters.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: Teacher | None,
        losses: NamedLosses,
        hooks: Hooks,
        task_weight: Scalar = 1.0,
        calls: Calls | None = None,
        patches: Patches | None = None,
    ) -> None:
        self.objective = Objective(losses, task_weight)
        self.step = TrainingStep(student, teacher, self.objective, hooks, calls)
        self.task = TaskWatch(self.objective)
        self.used = False
        """Whether a step has asked for the losses."""
        self.setup = SetUp(self.step, self.task)
        self.clock = Clock(self.step)
        self.names = Names()
        self.lines = Lines(self.objective, self.names)
        self.own_loss = ModelLoss(student)
        self.evaluation = Evaluation(self.step, self.task, self.names, self.own_loss)
        self.unused = UnusedParameters()
        self.gradients = GradientCheck(self.step)
        self.as_it_was = AsItWas()
        self.window = TokenWindow(loss for _, loss in self.objective.leaves)
        self.steps = TrainerSteps()
        self.patches = Patches() if patches is None else patches
        self.resume = ResumeState(self.setup, self.lines, self.evaluation, self.patches, self.as_it_was)
        self.started = False
        self._warned_of_empty = False
        self._told_columns = False
        self.leads = True
        """Whether it says what all students have in common: of several students, the first one's run does."""

    # What others look at

    @property
    def student(self) -> nn.Module:
        """The module that learns."""
        return self.step.student

    @property
    def teacher(self) -> Teacher | None:
        """Who answers."""
        return self.step.teacher

    @property
    def taken_columns(self) -> tuple[str, ...]:
        """The columns of a batch that the teacher reads itself."""
        return () if self.teacher is None else self.teacher.columns

    @property
    def log(self) -> PartLog:
        """Means of the loss and its parts."""
        return self.lines.log

    @property
    def results(self) -> dict[str, float]:
        """What the last evaluation gave, on its first data loader."""
        return self.evaluation.results

    def shares(self) -> list[tuple[str, float, float, float]]:
        """Return (name, weight, mean, share of the loss) of each part over the last epoch."""
        return self.lines.shares()

    def example(self) -> Batch | None:
        """Return zeros of the sizes that the student was called with when the losses were built, if that was so."""
        return None if self.setup.inputs is None else zeros_for(self.setup.inputs)

    # Set-up

    def share(self, answers: OneAnswer, patches: Patches, name: str, number: int) -> None:
        """Be the run of one of several students; called before :meth:`join`, while nothing is attached.

        Args:
            answers: Asks the teacher for all students.
            patches: What all runs have put on other objects.
            name: Name of the student, which what is logged has in its own.
            number: Number of the student; the first one moves the Trainer's loops when a fit is resumed.
        """
        self.step.answers, self.step.number = answers, number
        self.patches = self.resume.patches = patches
        self.names.student = name
        self.leads = self.resume.leads = number == 0
        self.step.watch()

    def join(self, trainer: Trainer, module: LightningModule) -> None:
        """Have checkpoints written whole, and check that student and teacher are there.

        The teacher comes from the callback that makes one of the student, if there is such a callback, and from files
        if it was built on the meta device.

        Args:
            trainer: The Trainer.
            module: The module that logs; with several students, that of this one.

        Raises:
            MisconfigurationException: If several callbacks make a teacher, there is a teacher besides, or the strategy
                cannot train so.
            ValueError: If student or teacher have no weights.
        """
        write_whole_checkpoints(trainer)
        self.steps.join(trainer, self.patches)
        self.names.watch(module, self.patches)
        self.evaluation.join(trainer.lightning_module, self.patches)
        source = find_source(trainer, self.clock.source, self.teacher, self.student)
        if source is not self.clock.source and source is not None:
            check_classes(source, self.step.hooks.output_options)
            self.clock.source = source
            self.step.set_teacher(source.provide(original(self.student)))
        if isinstance(self.teacher, FrozenTeacher):
            self.teacher.read_weights()
        if mesh_of(trainer) is None:
            check_has_weights(self.student)
            if isinstance(self.teacher, FrozenTeacher):
                self.teacher.materialize(device_of(self.student))
        elif self.clock.source is not None and not self.clock.source.shardable:
            raise MisconfigurationException(
                f"{type(self.clock.source).__name__} copies and resets whole networks, which FSDP2 would split; use "
                "DDP."
            )

    def prepare(
        self, trainer: Trainer, module: LightningModule, batch: Any, call_student: Callable[[Any], object]
    ) -> None:
        """Build the losses for a fit, see :meth:`SetUp.prepare`, and settle how long their stages are.

        Args:
            trainer: The Trainer, during ``setup`` of a fit.
            module: The module that trains.
            batch: A small batch, on the student's device.
            call_student: Calls the student once on that batch.
        """
        self.resume.begin(trainer)
        self.lines.begin()
        self.clock.begin()
        check_clips(trainer)
        self.as_it_was.set_up(self.teacher, made_of_student=self.clock.source is not None)
        if self.objective.needs_index:
            self.setup.show_dataset(*rows_and_targets(trainer, self.patches))
        if self.teacher is not None and self.teacher.looks_up:
            self.teacher.begin_split("train")
            options = self.step.hooks.plain_output_options()
            self.teacher.see_fit(number_of_samples(trainer, self.patches), options)
        self.setup.prepare(batch, call_student, module)
        if self.step.calls is None:  # under the callback the user's own step holds the task
            self.own_loss.prepare(self.step, getattr(module, "task_loss", None), batch)
        self._tell_unused_columns(batch)
        if isinstance(getattr(self.step.hooks, "teacher_view", None), OwnColumns):
            check_own_tokens(self.objective.leaves, read_if_known(self.step.hooks, batch))
        settle_stages(self.objective.leaves, trainer)
        self.objective.forget_goals()
        self.unused.begin()
        self.window.begin()
        if self.clock.source is not None:
            self.clock.source.begin(self.objective.losses, trainer)

    def attach_losses(self, trainer: Trainer, module: LightningModule, prefix: str) -> None:
        """Let others know the losses' parameters: DDP, and callbacks that have copied the module before.

        Args:
            trainer: The Trainer, during ``setup`` of a fit.
            module: The module that trains, with the losses in it.
            prefix: Where the losses sit in the module.
        """
        keep_from_ddp(module, prefix, self.objective.losses)
        copy_again(trainer, module, self.objective.losses)

    def split(self, trainer: Trainer, shard_student: Callable[[nn.Module, DeviceMesh], None] | None = None) -> None:
        """Let FSDP2 shard student, losses and teacher, and give a teacher on the meta device its weights.

        Args:
            trainer: The Trainer, while it configures the model.
            shard_student: Splits the student over the processes; ``None`` if the module has done so itself.
        """
        if mesh_of(trainer) is not None:
            self.unused.sharded = True
            split(self.step, trainer, shard_student)

    # Training

    def fit_start(self, module: LightningModule) -> None:
        """Bring the teacher to the student's device, and note how the run begins."""
        self.place_teacher()
        self.unused.start(compiled=is_compiled(self.student))
        self.clock.start(module.trainer)
        self.gradients.start(module.trainer)
        if self.leads:
            self.as_it_was.begin(self.teacher, made_of_student=self.clock.source is not None)
        check_learns(self.student)
        self.resume.fit_start()
        warn_of_eval_mode(self.student)
        if self.leads:
            say_what_the_summary_leaves_out(module.trainer, self.teacher)

    def place_teacher(self) -> None:
        """Bring the teacher to the student's device, for strategies that do not move the module themselves."""
        if self.teacher is not None:
            self.teacher.place(device_of(self.student))
            if self.teacher.module is not None:
                self.teacher.module.eval()

    def epoch_start(self, module: LightningModule) -> None:
        """Begin the epoch's means."""
        self.started = True
        self.lines.steps = module.global_step  # a resumed fit does not begin at 0
        self.log.start_epoch()
        self.resume.epoch_start(module)

    def loss(
        self,
        module: LightningModule,
        batch: Any,
        read: Callable[[], Batch],
        calls: Sequence[Call],
        task: Tensor | None,
        of_task: Tensor | None = None,
    ) -> Tensor:
        """Return the whole loss of a recorded step and count its parts, unless the step is none of the Trainer's.

        Args:
            module: The module that trains.
            batch: The batch as the data loader gave it.
            read: Returns the batch taken apart, the same at every call.
            calls: The student's recorded calls that count.
            task: The unweighted task term, ``None`` without one.
            of_task: Over how many labels the task term is a mean, ``None`` if it is one over samples.
        """
        if self.setup.embeddings.taken:
            self.setup.embeddings.check()
        empty = all(call.empty for call in calls)
        if empty:
            self._warn_of_empty(module)
            task = None if task is None else task.nan_to_num(0.0, 0.0, 0.0)  # the mean of nothing is NaN
        self.used = True
        goal = self.clock.goal
        if not self.steps.going_on:
            with leaving_no_trace(self.objective.losses):
                return self.step.terms(goal, batch, read, calls, task).total
        terms = self.step.terms(goal, batch, read, calls, task)
        if not self.clock.tuning:
            self.gradients.remember(goal, terms.tensors)
            try:
                self.lines.add(terms, sum(map(self._rows, calls)), self._counts(terms, of_task))
            except FloatingPointError as error:
                self.gradients.look(module, self.log.bad_step)
                said = with_state_of_weights(error, module)
                if terms.total.isfinite():  # an earlier step's, of which nothing is left to look at
                    raise FloatingPointError(said) from None
                where = self.step.where_not_finite(terms, calls[-1])
                raise FloatingPointError(f"{said} {where}") from None
        counts = [of_task] if "task" in terms.parts else []
        total = self.window.weigh(terms.total, goal, module, counts)
        varies = self.clock.source is not None or bool(self.objective.stages) or self.objective.may_leave_out_teacher
        kept = self.unused.keep(total, module, [call.output for call in calls], empty=empty, varies=varies)
        return self.window.returned(kept)

    def _rows(self, call: Call) -> int:
        """Return over how many rows the parts of a call are means: those of the logits, not the nodes of graphs."""
        logits = call.logits
        if logits is None and call.called:  # no loss has looked for them
            logits = self.step.reading.known_logits(call.output)
        if isinstance(logits, Tensor) and logits.ndim and not self.step.batch_axis:
            return len(logits)
        return call.rows(self.step.batch_axis)

    def before_optimizer_step(self, module: LightningModule, optimizer: Optimizer) -> None:
        """Leave unused parameters alone, look at the gradients, and write a line if one is due."""
        self.window.finish(module)
        self.unused.before_optimizer_step(module, in_stage=self.clock.goal.in_stage)
        if not self.clock.tuning:
            self.gradients.before_optimizer_step(module, optimizer, self.lines.steps)
        try:
            self.lines.before_optimizer_step(module)
        except FloatingPointError:
            self.gradients.look(module, self.log.bad_step)
            raise

    def epoch_end(self, module: LightningModule) -> None:
        """Log the steps since the last line."""
        with self._gradients_told_first(module):
            self.lines.epoch_end(module)
        self.as_it_was.check(self.teacher, early=True)

    def train_end(self) -> None:
        """Look whether the teacher is as it was."""
        self.as_it_was.check(self.teacher)

    def start_evaluation(self, module: LightningModule) -> None:
        """Begin to compare student and teacher, and give callbacks the means of the epoch so far."""
        if module.trainer.state.fn == TrainerFn.FITTING:
            self.clock.tell_teacher(module)
        self.evaluation.start(module)
        with self._gradients_told_first(module):
            self.lines.show_epoch_so_far(module)

    def save(self, trainer: Trainer, checkpoint: dict[str, Any]) -> None:
        """Write into a checkpoint what resuming needs beside weights; every process must call this."""
        with self._gradients_told_first(trainer.lightning_module):
            self.resume.save(trainer, checkpoint, tuning=self.clock.tuning)

    def load(self, checkpoint: Mapping[str, Any], trainer: Trainer | None = None) -> None:
        """Build the losses for a checkpoint's sizes, and remember the rest for the fit that goes on from it."""
        self.resume.load(checkpoint, trainer)

    def leave(self) -> None:
        """Leave student, teacher and the Trainer as they were, however the fit ended."""
        self.started = False
        self.steps.leave()
        self.lines.readers.clear()
        self.gradients.stop()
        self.step.detach()
        self.patches.undo_all()

    def _tell_unused_columns(self, batch: Any) -> None:
        """Say once which columns no network takes, unless the user reads batches; a step of their own may use them."""
        hooks, teacher = self.step.hooks, self.teacher
        if self._told_columns or not (is_own(hooks.unpack_batch) and gives_as_is(hooks)):
            return
        self._told_columns = True
        networks = [self.student, *([teacher.module] if teacher is not None and teacher.module is not None else [])]
        if len(networks) == 2 and any(isinstance(v, Tensor) and v.ndim == 4 for v in leaves_of(batch)):
            difference = told_difference(*networks)
            if difference is not None:
                rank_zero_info(difference)
        of_store = () if teacher is None else teacher.stored_columns
        own_step = self.step.calls is not None
        unused = unused_columns(batch, networks, (*self.taken_columns, *of_store), own_step=own_step)
        matters = not own_step or self.objective.needs_target
        for told, warns in ((several_targets(batch, networks), matters), (unused, not own_step)):
            if told is not None:
                (rank_zero_warn if warns else rank_zero_info)(told)

    def _counts(self, terms: Terms, of_task: Tensor | None) -> dict[str, Tensor] | None:
        """Return over how many labels or tokens those parts are means that are means over such."""
        counts = {} if of_task is None else {"task": of_task}
        for name, loss in self.objective.named.items():
            if loss.counted is not None:
                counts.update({part: loss.counted for part in terms.parts if part.split("/")[0] == name})
        return counts

    @contextmanager
    def _gradients_told_first(self, module: LightningModule) -> Iterator[None]:
        """Look at the gradients that wait after the block, or before it reports the loss that they have led to."""
        try:
            yield
        except FloatingPointError:
            self.gradients.look(module, self.log.bad_step)
            raise
        self.gradients.look(module)

    def _warn_of_empty(self, module: LightningModule) -> None:
        if not self._warned_of_empty:
            self._warned_of_empty = True
            warnings.warn(
                f"The batch of step {module.global_step} holds no samples on process {module.global_rank}; such a "
                "batch adds nothing to the loss and to the gradient.",
                stacklevel=2,
            )
