"""What both doors do at each moment of a run: set up, step, log, evaluate, save and resume."""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelSummary, StochasticWeightAveraging, WeightAveraging
from lightning.pytorch.trainer.states import TrainerFn
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard

from lightning_kd.capture.batch import Batch
from lightning_kd.capture.call import Call
from lightning_kd.capture.example import zeros_for
from lightning_kd.capture.networks import device_of, is_compiled, num_parameters, original
from lightning_kd.distributed.gather import is_distributed
from lightning_kd.distributed.sharding import check_clips, check_not_one_graph, mesh_of, reach
from lightning_kd.distributed.unused_parameters import keep_in_graph, unused_by, zero_gradients
from lightning_kd.distributed.whole_state import is_sharded, on_meta
from lightning_kd.engine.checks import check_learns
from lightning_kd.engine.distiller import Distiller, Shapes, weighted_sum
from lightning_kd.files.checkpoint import CHECKPOINT_KEY
from lightning_kd.files.checkpoint_io import write_whole_checkpoints
from lightning_kd.fit.first_batch import rows_and_targets
from lightning_kd.fit.lines import PartLog
from lightning_kd.fit.optimizers import OptimizerSnapshot
from lightning_kd.fit.resume import processes, random_state
from lightning_kd.fit.resume.loops import continue_loops, skip_seen_batches, unfinished_gradients
from lightning_kd.fit.stages import settle_stages
from lightning_kd.losses.base import DistillationLoss, add_up
from lightning_kd.metrics import Comparison
from lightning_kd.schedules import Moment, Scalar, Schedule, value_at
from lightning_kd.teachers.source import TeacherSource


class DistillationRun:
    """The life of a distiller inside a Trainer; the doors forward their hooks to it.

    Args:
        distiller: The engine.
        task_weight: Factor of the task term, a number or a schedule.
    """

    def __init__(self, distiller: Distiller, task_weight: Scalar = 1.0) -> None:
        self.distiller = distiller
        self.task_weight = task_weight
        self.changes_over_time = distiller.changes_over_time or isinstance(task_weight, Schedule)
        """Whether a weight or a loss changes over the run."""
        self._task_weight_now = value_at(task_weight, Moment())
        self.steps = 0
        """Optimizer steps done; the Trainer's own count is slow to ask for."""
        self.log = PartLog()
        self.comparisons: dict[int, Comparison] = {}
        """Student against teacher in the evaluation that is going on, by the number of the data loader."""
        self.results: dict[str, float] = {}
        """What the last evaluation gave, on its first data loader."""
        self.teacher_accuracy: float | None = None
        self.origin = Moment()
        """Where schedules and stages count from: the beginning of the fit, or of a generation."""
        self.begun = True
        """Whether steps are those of the training; between set-up and the fit's start they are a tuner's trials."""
        self._processes: list[dict[str, Any]] = []
        self._data_start: dict[str, Any] = {}
        self._source: TeacherSource | None = None
        self._start: OptimizerSnapshot | None = None
        self._staged: list[tuple[str, DistillationLoss]] = []
        self._sometimes_idle = False
        self._sharded = False
        self._maybe_idle = False
        """Whether a gradient of zero may be that of a parameter which the main training does not reach."""
        self._idle: list[nn.Parameter] = []
        self._doubtful: list[nn.Parameter] = []
        self._told_of_empty = False
        self._dataset = (0, False)

    def go_on_from(self, earlier: "DistillationRun") -> None:
        """Take over what the losses were built for in an earlier run of theirs."""
        self.distiller.shapes = earlier.distiller.shapes
        self.distiller.inputs = earlier.distiller.inputs
        self._dataset = earlier._dataset

    def join(self, trainer: Trainer) -> None:
        """Have checkpoints written whole, and see that student and teacher are there.

        The teacher comes from the callback that makes one of the student, if there is such a callback, and from files
        if it was built on the meta device.

        Raises:
            MisconfigurationException: If several callbacks make a teacher, there is a teacher besides, or the strategy
                cannot train so.
            ValueError: If student or teacher have no weights.
        """
        write_whole_checkpoints(trainer)
        self._find_source(trainer)
        if mesh_of(trainer) is None:
            _check_has_weights(self.distiller.student)
            if self.distiller.teacher is not None:
                self.distiller.teacher.materialize(device_of(self.distiller.student))
        elif self._source is not None and not self._source.shardable:
            raise MisconfigurationException(
                f"{type(self._source).__name__} copies and resets whole networks, which FSDP2 would split; use DDP."
            )

    def _find_source(self, trainer: Trainer) -> None:
        sources = [c for c in trainer.callbacks if isinstance(c, TeacherSource)]  # type: ignore[attr-defined]
        if not sources:
            return
        source = sources[0]
        if source is self._source:
            return
        if len(sources) > 1:
            names = " and ".join(type(one).__name__ for one in sources)
            raise MisconfigurationException(f"{names} make the teacher of the student; a run takes at most one.")
        if self.distiller.teacher is not None:
            raise MisconfigurationException(
                f"{type(source).__name__} makes the teacher of the student, but there is a teacher besides; pass "
                "teacher=None, or take the callback away."
            )
        if is_sharded(self.distiller.student):
            raise MisconfigurationException(
                f"{type(source).__name__} copies the student, which configure_model has split by now; use "
                "DistillationModule, which copies first."
            )
        self._source = source
        self.distiller.set_teacher(source.provide(original(self.distiller.student)))

    def prepare(
        self, trainer: Trainer, module: LightningModule, batch: Any, call_student: Callable[[Any], object]
    ) -> None:
        """Build the losses for a fit, see :meth:`Distiller.prepare`, and settle how long their stages are.

        Args:
            trainer: The Trainer, during ``setup`` of a fit.
            module: The module that trains.
            batch: A small batch, on the student's device.
            call_student: Calls the student once on that batch.
        """
        self.begun, self._processes, self.teacher_accuracy = False, [], None
        self._forget_steps()
        check_clips(trainer)
        self._show_dataset(trainer)
        self.distiller.prepare(batch, call_student, module)
        settle_stages(self.distiller.named_leaves(), trainer)
        self.distiller.plan_anew()
        self._sometimes_idle = True
        if self._source is not None:
            self._source.begin(self.distiller.losses, trainer)

    def split(self, trainer: Trainer, shard_student: Callable[[nn.Module, DeviceMesh], None] | None = None) -> None:
        """Let FSDP2 shard student, losses and teacher, and give a teacher on the meta device its weights.

        Args:
            trainer: The Trainer, while it configures the model.
            shard_student: Splits the student over the processes; ``None`` if the module has done so itself.

        Raises:
            ValueError: If student or teacher have no weights after that.
        """
        mesh = mesh_of(trainer)
        if mesh is None:
            return
        self._sharded = True
        student, teacher = self.distiller.student, self.distiller.teacher
        check_not_one_graph(student, "student")
        if teacher is not None:
            check_not_one_graph(teacher.module, "teacher")
        if shard_student is not None:
            shard_student(student, mesh)
        _check_has_weights(student)
        if any(True for _ in self.distiller.losses.parameters()) and not is_sharded(self.distiller.losses):
            fully_shard(self.distiller.losses, mesh=mesh)
        if teacher is not None:
            self.distiller.hooks.shard_teacher(teacher.module, mesh)
            teacher.materialize(trainer.strategy.root_device)

    def keep_from_ddp(self, module: LightningModule, prefix: str) -> None:
        """Tell DDP which buffers the losses themselves keep equal in all processes.

        Args:
            module: The module that DDP will wrap.
            prefix: Where the losses sit in it.
        """
        names = [
            f"{prefix}.{path}.{buffer}"
            for path, loss in self.distiller.losses.named_modules()
            if isinstance(loss, DistillationLoss)
            for buffer in loss.replicated_buffers
        ]
        if names:
            # the name is private to torch, but there is no public one
            ignored = set(getattr(module, "_ddp_params_and_buffers_to_ignore", ()))
            module._ddp_params_and_buffers_to_ignore = ignored | set(names)  # type: ignore[assignment]

    def copy_again(self, trainer: Trainer, module: LightningModule) -> None:
        """Let weight-averaging callbacks that were set up before the losses were built copy the module once more."""
        if not self.distiller.losses.state_dict():
            return
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            averages = isinstance(callback, WeightAveraging | StochasticWeightAveraging)
            if averages and callback._average_model is not None:
                callback.setup(trainer, module, "fit")

    def fit_start(self, module: LightningModule) -> None:
        """Bring the teacher to the student's device, and note how the run begins."""
        self.place_teacher()
        self._maybe_idle = self._sharded or is_compiled(self.distiller.student)
        self._start = OptimizerSnapshot(module.trainer)
        self.begun = True
        check_learns(self.distiller.student)
        mine = processes.mine(self._processes)
        if mine is not None:  # the Trainer is about to begin the data
            random_state.restore(mine["data_start"])
        self._data_start = random_state.current()
        if not self.distiller.student.training:
            rank_zero_warn(
                "The student is in eval mode, so its BatchNorm and dropout layers will not train; "
                "call student.train() before fit unless you froze them on purpose."
            )
        teacher, callbacks = self.distiller.teacher, module.trainer.callbacks  # type: ignore[attr-defined]
        if teacher is not None and any(isinstance(callback, ModelSummary) for callback in callbacks):
            rank_zero_info(
                f"The teacher, {type(original(teacher.module)).__name__} with "
                f"{num_parameters(teacher.module):,} parameters, is frozen and no part of the module, so it is not in "
                "the summary."
            )

    def train_start(self, module: LightningModule) -> None:
        """Let a resumed run go on exactly where its checkpoint was written: in the loops, the data, at random."""
        mine = self._take_up_process()
        if mine is None:
            return
        trainer = module.trainer
        self.log.restore(mine["log"])
        for name, buffer in self._local_memory():
            buffer.copy_(mine["memory"][name])
        self._data_start = mine["data_start"]
        trainer.callback_metrics.update(mine["metrics"])
        if continue_loops(trainer):
            anew = trainer.current_epoch > 0 or trainer.strategy.restore_checkpoint_after_setup
            if anew:
                random_state.restore(self._data_start)
            skip_seen_batches(trainer, anew=anew)
        random_state.restore(mine["random_state"])
        for name, parameter in module.named_parameters():
            if name in mine["gradients"]:
                parameter.grad = mine["gradients"][name].to(parameter.device)

    def epoch_start(self, module: LightningModule) -> None:
        """Begin the epoch's means, and remember the random state with which its data is begun."""
        self.log.start_epoch()
        if module.current_epoch > 0:  # that of the first epoch has been begun
            self._data_start = random_state.current()

    def _take_up_process(self) -> dict[str, Any] | None:
        states, self._processes = self._processes, []
        mine = processes.mine(states)
        if states and mine is None:
            rank_zero_warn(
                f"The checkpoint was written by {len(states)} process(es); another number of them goes on from it, so "
                "random numbers are drawn afresh, and the next log line tells the steps from here on only."
            )
        return mine

    def place_teacher(self) -> None:
        """Bring the teacher to the student's device, for strategies that do not move the module themselves."""
        if self.distiller.teacher is not None:
            self.distiller.teacher.move(device_of(self.distiller.student))
            self.distiller.teacher.module.eval()

    def start_batch(self, module: LightningModule, batch_idx: int) -> None:
        """Begin a generation or leave a stage where it is due, and tell the losses how far the run has come."""
        if not self.begun:
            return
        trainer = module.trainer
        if self._source is not None:
            if self._source.start_batch(self.distiller.losses, trainer):
                self.restart_optimizers(trainer)
            self.origin = self._source.origin
        if not self.changes_over_time:
            return
        moment = self.moment(module)
        self.set_moment(moment)
        for _, loss in self._staged:
            if loss.stage is not None and loss.stage.lr is not None:
                OptimizerSnapshot.set_lr(trainer, loss.stage.lr)
        if not self._staged and self._leaves_stages(moment, batch_idx):
            self.restart_optimizers(trainer)

    def set_moment(self, moment: Moment) -> None:
        """Tell the losses how far the run has come."""
        self._task_weight_now = value_at(self.task_weight, moment)
        self.distiller.set_moment(moment)
        self._staged = self.distiller.stage_at(moment)

    def _forget_steps(self) -> None:
        """Take back what an earlier fit, or one that was broken off, has left."""
        self.log = PartLog()
        self.origin = Moment()
        self.set_moment(Moment())
        self._staged = []

    def moment(self, module: LightningModule, steps_ago: int = 0) -> Moment:
        """Return how far the run has come since its beginning, or that of its generation."""
        return Moment(module.global_step - steps_ago - self.origin.step, module.current_epoch - self.origin.epoch)

    def was_in_stage(self, module: LightningModule) -> bool:
        """Whether the last step belonged to a stage before the main training."""
        return self.begun and self.changes_over_time and bool(self.distiller.stage_at(self.moment(module, steps_ago=1)))

    @property
    def leaves_out_student(self) -> bool:
        """Whether the stage that is going on does not call the student."""
        return bool(self._staged) and not any(loss.stage and loss.stage.runs_student for _, loss in self._staged)

    def restart_optimizers(self, trainer: Trainer) -> None:
        """Forget momenta, and set learning rates and schedules to where they began."""
        assert self._start is not None, "a fit has begun"
        self._start.restore(trainer)

    def _leaves_stages(self, moment: Moment, batch_idx: int) -> bool:
        before = [Moment(moment.step - 1, moment.epoch)]
        if batch_idx == 0:
            before.append(Moment(moment.step, moment.epoch - 1))
        return any(self.distiller.stage_at(one) for one in before)

    def training_loss(
        self,
        module: LightningModule,
        batch: Any,
        read: Callable[[], Batch],
        records: Sequence[Call],
        task: Tensor | None,
    ) -> Tensor:
        """Return the whole loss of a recorded step and count its parts.

        Args:
            module: The module that trains.
            batch: The batch as the data loader gave it.
            read: Returns the batch taken apart, the same at every call.
            records: The student's recorded calls that count.
            task: The unweighted task term, ``None`` without one.
        """
        empty = all(record.empty for record in records)
        if empty:
            self._tell_of_empty(module)
            task = None if task is None else task.nan_to_num(0.0, 0.0, 0.0)  # the mean of nothing is NaN
        if self._staged:
            counted = self.distiller.stage_parts(batch, read, records, self._staged)
            total = add_up(list(counted.values()))
        else:
            parts = self.distiller.parts(batch, read, records)
            weight = self._task_weight_now
            base = task if task is None or weight == 1.0 else weight * task
            total = weighted_sum(base, parts, self.distiller.named_losses())
            counted = parts if task is None else {"task": task, **parts}
        for name, loss in self.distiller.named_losses().items():
            if loss.details and name in counted:
                counted = {**counted, **{f"{name}/{part}": value for part, value in loss.details.items()}}
        try:
            if self.begun:
                self.log.add(total, counted, self.steps)
        except FloatingPointError as error:
            if total.isfinite():  # an earlier step's, of which nothing is left to look at
                raise
            raise FloatingPointError(f"{error} {self.distiller.where_not_finite(records[-1])}") from None
        finally:
            self.distiller.step = None
        if self._sharded:
            return reach(total, [record.output for record in records])
        return self._with_idle(module, total, empty=empty)

    def _tell_of_empty(self, module: LightningModule) -> None:
        if not self._told_of_empty:
            self._told_of_empty = True
            warnings.warn(
                f"The batch of step {module.global_step} holds no samples on process {module.global_rank}; such a "
                "batch adds nothing to the loss and to the gradient.",
                stacklevel=2,
            )

    def _with_idle(self, module: LightningModule, total: Tensor, *, empty: bool) -> Tensor:
        """Name the parameters that this step leaves out, which DDP would wait for."""
        if not (self._sometimes_idle or empty) or not is_distributed():
            return total
        idle = unused_by(total, module.parameters())
        if empty:  # the other processes may reach what this one does not: the averaged gradient will tell
            self._idle, self._doubtful = [], idle if self._sometimes_idle else []
            return keep_in_graph(total, idle)
        self._idle, self._doubtful = idle, []
        varies = self._source is not None or bool(self.distiller.stages())
        self._sometimes_idle = varies or bool(self._idle)
        return keep_in_graph(total, self._idle)

    def before_optimizer_step(self, module: LightningModule) -> None:
        """Hand the means to the Trainer if this step writes a log line."""
        idle = self._idle
        if self._staged or self._maybe_idle:
            idle = [*idle, *zero_gradients(module.parameters())]
        elif self._doubtful:
            idle = zero_gradients(self._doubtful)
        if not self._staged:
            self._maybe_idle = self._maybe_idle and bool(idle)
        for parameter in idle:  # an optimizer must not even decay what the step left out
            parameter.grad = None
        self.steps = module.global_step + 1
        every = module.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if every and self.steps % every == 0:
            self.write_log(module)

    def write_log(self, module: LightningModule) -> None:
        """Write the means since the last line to the loggers, and show the loss.

        Loggers, progress bar and callbacks get the line directly: once a value is in the Trainer's own collection,
        the Trainer goes through that collection in every step.
        """
        means = self.log.flush()
        if not means or module.trainer.barebones:
            return
        module.trainer.progress_bar_metrics["train/loss"] = means["loss"]
        module.trainer.callback_metrics["train/loss"] = torch.tensor(means["loss"])
        self._write(module, means, module.global_step)

    def epoch_end(self, module: LightningModule) -> None:
        """Write the steps that no line has told yet, and give callbacks the means of the epoch, of all processes."""
        left = self.log.flush()
        means = {f"train/{name}": value for name, value in self.log.epoch_means.items()}
        if not means or module.trainer.barebones:
            return
        if left:
            self._write(module, left, module.global_step - 1)
        module.log("train/loss", means.pop("train/loss"), prog_bar=True, logger=False, sync_dist=True)
        module.log_dict(means, logger=False, sync_dist=True)

    def shares(self) -> list[tuple[str, float, float, float]]:
        """Return (name, weight, mean, share of the loss) of each part over the last epoch."""
        means = self.log.epoch_means
        weights = {
            "task": self._task_weight_now,
            **{name: loss.weight_now for name, loss in self.distiller.named_losses().items()},
        }
        total = means.get("loss") or 1.0
        return [
            (name, weights[name], mean, weights[name] * mean / total) for name, mean in means.items() if name in weights
        ]

    def start_evaluation(self, module: LightningModule) -> None:
        """Begin an evaluation anew, whatever became of the last one, and show callbacks the epoch's means so far.

        A checkpoint or a stop that watches a training loss is decided when the validation ends, which is before the
        epoch does.
        """
        self.comparisons = {}
        trainer = module.trainer
        means = self.log.epoch_means if trainer.state.fn == TrainerFn.FITTING else {}
        if not means or trainer.barebones:
            return
        values = torch.tensor(list(means.values()), device=module.device)
        values = trainer.strategy.reduce(values, reduce_op="mean")
        trainer.callback_metrics.update({f"train/{name}": value for name, value in zip(means, values, strict=True)})

    def evaluate(
        self,
        module: LightningModule,
        batch: Any,
        record: Call,
        target: Tensor | None,
        *,
        prefix: str,
        loader: int,
        with_student: bool,
    ) -> None:
        """Compare the student's recorded call with the teacher on one batch, and log what the comparison will give.

        With several data loaders each has names of its own, which end as those of everything that is logged in an
        evaluation step: ``val/agreement/dataloader_idx_1``.

        Args:
            module: The module that is evaluated.
            batch: The batch.
            record: The student's recorded call.
            target: The batch's target, ``None`` without one.
            prefix: What the names begin with, ``"val"`` or ``"test"``.
            loader: Number of the data loader.
            with_student: Whether to log the student's accuracy too.
        """
        seen = self.distiller.run_teacher(batch, record)
        logits_of = self.distiller.hooks.logits_of
        teacher_logits = logits_of(seen.output) if seen.called else None
        comparison = self.comparisons.setdefault(loader, Comparison())
        comparison.update(logits_of(record.output), teacher_logits, target)
        if module.trainer.barebones:
            return
        fitting = module.trainer.state.fn == TrainerFn.FITTING
        for name, metric in comparison.updated().items():
            told = name == "teacher_accuracy" and fitting and self.teacher_accuracy is not None
            if not told and (with_student or name != "accuracy"):
                module.log(f"{prefix}/{name}", metric, prog_bar=True, metric_attribute=name)

    def end_evaluation(self, module: LightningModule) -> None:
        """Keep what the evaluation gave; the teacher's accuracy is logged once in a fit."""
        trainer, first = module.trainer, self.comparisons.get(0)
        self.results = {} if first is None else first.compute()
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking and self.begun:
            self.teacher_accuracy = self.results.get("teacher_accuracy", self.teacher_accuracy)

    def example(self) -> Batch | None:
        """Return zeros of the sizes that the student was called with when the losses were built, if that was so."""
        return None if self.distiller.inputs is None else zeros_for(self.distiller.inputs)

    def save(self, trainer: Trainer, checkpoint: dict[str, Any]) -> None:
        """Write into a checkpoint, as plain data, what resuming needs beside weights; every process must call this.

        What was logged before it goes to disk too: a resumed run does not write these lines again.
        """
        for logger in trainer.loggers:
            logger.save()
        shapes = self.distiller.shapes
        plain = None if shapes is None else {r: {n: list(s) for n, s in of.items()} for r, of in shapes.items()}
        checkpoint[CHECKPOINT_KEY] = {
            "shapes": plain,
            "inputs": self.distiller.inputs,
            "layers": {
                name: {"student": loss.student, "teacher": loss.teacher}
                for name, loss in self.distiller.named_leaves()
                if loss.reads != "logits" and not loss.needs_layers
            },
            "stages": [[stage.length, stage.unit] for stage in self.distiller.stages()],
            "dataset": self._dataset,
            "teacher_accuracy": self.teacher_accuracy,
            "processes": processes.gather(self._process_state(trainer)),
        }

    def _process_state(self, trainer: Trainer) -> dict[str, Any]:
        return {
            "random_state": random_state.current(),
            "data_start": self._data_start if self.begun else random_state.current(),
            "log": self.log.state(),
            "metrics": {name: value.detach().cpu() for name, value in trainer.callback_metrics.items()},
            "gradients": unfinished_gradients(trainer),
            "memory": {name: buffer.detach().cpu() for name, buffer in self._local_memory()},
        }

    def _local_memory(self) -> Iterator[tuple[str, Tensor]]:
        """Yield what the losses remember in this process alone."""
        for path, loss in self.distiller.losses.named_modules():
            if isinstance(loss, DistillationLoss):
                yield from ((f"{path}.{name}", loss.get_buffer(name)) for name in loss.local_buffers)

    def load(self, checkpoint: Mapping[str, Any]) -> None:
        """Build the losses for a checkpoint's sizes, and remember the rest for the fit that goes on from it.

        A fit that does not, though it comes later, forgets the rest in :meth:`prepare`.

        Raises:
            ValueError: If the checkpoint's student is of another architecture.
        """
        saved = checkpoint.get(CHECKPOINT_KEY)
        if saved is None:
            return
        self._processes = saved["processes"]
        self.teacher_accuracy = saved["teacher_accuracy"]
        self.distiller.inputs = saved["inputs"]
        for stage, (length, unit) in zip(self.distiller.stages(), saved["stages"], strict=True):
            stage.length, stage.unit = length, unit
        self.distiller.plan_anew()
        if saved["shapes"] is not None and self.distiller.shapes is None:
            self.distiller.name_layers(saved["layers"])
            rows, with_targets = saved["dataset"]
            self._tell_dataset(rows, torch.zeros(rows, dtype=torch.long) if with_targets else None)
            shapes: Shapes = {r: {n: tuple(s) for n, s in of.items()} for r, of in saved["shapes"].items()}
            self.distiller.build(shapes)

    def _show_dataset(self, trainer: Trainer) -> None:
        """Show the data set to the losses, or check that it is the one that a checkpoint's losses know."""
        if not any(loss.needs_index for loss in self.distiller.components):
            return
        rows, targets = rows_and_targets(trainer)
        if self.distiller.shapes is None:
            self._tell_dataset(rows, targets)
        elif rows != self._dataset[0]:
            raise ValueError(
                f"The training data has {rows} rows, but the losses of the checkpoint remember {self._dataset[0]}; "
                "fit with the data that the checkpoint was made with."
            )

    def _tell_dataset(self, rows: int, targets: Tensor | None) -> None:
        self._dataset = (rows, targets is not None)
        for loss in self.distiller.components:
            if loss.needs_index:
                loss.set_dataset(rows, targets)

    def _write(self, module: LightningModule, means: Mapping[str, float], step: int) -> None:
        line = {f"train/{name}": value for name, value in means.items()}
        for logger in module.loggers:
            logger.log_metrics({**line, "epoch": module.current_epoch}, step=step)


def _check_has_weights(student: nn.Module) -> None:
    if on_meta(student):
        raise ValueError(
            f"The student {type(student).__name__} is on the meta device, so it has no weights; build it with its "
            "weights, or, under a ModelParallelStrategy, override shard_student to shard it and then "
            "materialize(student, files, self.trainer.strategy.root_device)."
        )
