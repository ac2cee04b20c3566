"""The first door: a LightningModule around any two modules."""

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any, Literal, Self, cast

import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.core.mixins.hparams_mixin import _given_hyperparameters
from lightning.pytorch.utilities.model_helpers import _restricted_classmethod
from lightning.pytorch.utilities.types import LRSchedulerTypeUnion, OptimizerLRScheduler
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from lightning_kd.capture import batch as batches
from lightning_kd.capture.batch import Batch
from lightning_kd.capture.example import Example
from lightning_kd.capture.generators import drawing_nothing
from lightning_kd.capture.heads import Head
from lightning_kd.capture.hooks import Capture
from lightning_kd.capture.networks import device_of
from lightning_kd.capture.outputs import Outputs, TeacherOutputs
from lightning_kd.configurable import restore
from lightning_kd.distributed.sharding import mesh_of, shard
from lightning_kd.distributed.whole_state import is_sharded
from lightning_kd.engine.begin_anew import forget_layers
from lightning_kd.engine.model_loss import check_target, check_task_loss, own_loss
from lightning_kd.engine.task import of_all_labels, task_term
from lightning_kd.export.student import Format, export_student
from lightning_kd.files.checkpoint import check_same_architecture
from lightning_kd.files.precision import Precision, dtype_of
from lightning_kd.files.reading import check_class_names, load_plain
from lightning_kd.fit.door import ReadsOutputs, options_of
from lightning_kd.fit.first_batch import probe_batch
from lightning_kd.fit.hooks import ModuleHooks, already_saved
from lightning_kd.fit.neighbours import keep_from_ddp
from lightning_kd.fit.optimizers import configure
from lightning_kd.fit.parts import ReplaceableParts
from lightning_kd.fit.run import DistillationRun
from lightning_kd.fit.stages import check_trains_on
from lightning_kd.fit.students.several import OneOrSeveral, check_one_student
from lightning_kd.losses.base import DistillationLoss
from lightning_kd.losses.naming import NamedLosses, name_losses
from lightning_kd.metrics.given import Metrics, name_metrics
from lightning_kd.schedules import Moment, Scalar, Schedule, extremes
from lightning_kd.teachers.base import Teacher
from lightning_kd.teachers.frozen import FrozenTeacher, as_teacher
from lightning_kd.teachers.inputs import TeacherView


class DistillationModule(OneOrSeveral, ReadsOutputs, ReplaceableParts):
    r"""Train a student on a task and on what a frozen teacher shows it.

    .. math::
        L = w_0 \, L_{task}(S(x), y) + \sum_i w_i \, L_i(S, T)

    The teacher is in eval mode, without gradients, and outside the module registry: it is in no checkpoint, no
    optimizer and no averaged copy, and it follows the module to its device and precision. ``module.student`` is your
    own object. Subclass and override :meth:`unpack_batch`, :meth:`teacher_inputs` or :meth:`logits_of` for batches
    and outputs of another form.

    Args:
        student: The module that learns; its output is a tensor, a tuple, or has ``logits``.
        teacher: The trained module to learn from, frozen here, or a ``Teacher`` of another kind; none for plain
            supervised training, and where a callback makes it of the student (EMATeacher, BornAgain).
        losses: The distillation losses, each with its own weight; of several students also by name: {NAME: [...]}.
        students: Several students by name in place of one; makes a :class:`SeveralStudents`.
        task_loss: The task's own loss on (logits, target), or ``"model"`` for the one in the student's output; or none.
        task_weight: Factor of the task's own loss, >= 0; a number, or a schedule of it.
        optimizer: Makes the optimizer from the parameters of student and losses; a learning rate finder sets the
            attribute ``lr``, which takes the place of the optimizer's own.
        lr_scheduler: Makes the learning rate scheduler from the optimizer.
        lr_interval: Whether the scheduler steps every epoch or every optimizer step.
        teacher_dtype: Format that the teacher computes in; by default its own, or that of the Trainer's precision.
        teacher_weights: File or files of the teacher's weights (``.safetensors``, state dict, Lightning checkpoint),
            read at set-up; under a ``ModelParallelStrategy`` one on the meta device gets its own part only.
        metrics: Torchmetrics of (logits, target), your own or of ``lightning_kd.metrics``; also as ``teacher_...``.
        logits: Which of several outputs the task reads, by name or number; a loss may read another: ``head=``.
        teacher_logits: Which of several outputs of the teacher, if it has another name there.
        teacher_outputs: What the teacher returns: logits, or probabilities of classes or (by sigmoid) of labels.
        teacher_classes: The teacher's class for each of the student's, for a teacher of more, or in another order.
        student_classes: The student's classes that are compared, where the teacher knows only some of them.
        teacher_inputs: Another view of the batch for the teacher: Renormalize, Resize, Keys, OwnColumns, a Chain, or a
            function on (args, kwargs).

    Raises:
        ValueError: If there is nothing to train with, a layer does not exist (the nearest names are shown), or student
            and teacher share parameters; at set-up, if a loss needs a teacher and there is none.

    Example:
        >>> from functools import partial
        >>> from lightning_kd.losses import KDLoss
        >>> module = DistillationModule(
        ...     nn.Linear(4, 3),
        ...     teacher=nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 3)),
        ...     losses=[KDLoss(temperature=4.0, weight=0.9)],
        ...     task_loss=nn.CrossEntropyLoss(),
        ...     task_weight=0.1,
        ...     optimizer=partial(torch.optim.SGD, lr=0.05),
        ... )
        >>> sorted(module.state_dict())
        ['student.bias', 'student.weight']
    """

    def __init__(
        self,
        student: nn.Module | None = None,
        teacher: nn.Module | Teacher | None = None,
        losses: Sequence[DistillationLoss] | Mapping[str, Sequence[DistillationLoss]] | None = None,
        *,
        students: dict[str, nn.Module] | None = None,
        task_loss: nn.Module | Literal["model"] | None = None,
        task_weight: Scalar = 1.0,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        lr_scheduler: LRSchedulerCallable | None = None,
        lr_interval: Literal["epoch", "step"] = "epoch",
        teacher_dtype: Precision | torch.dtype | None = None,
        teacher_weights: str | list[str] | None = None,
        metrics: Metrics = None,
        logits: Head = None,
        teacher_logits: Head = None,
        teacher_outputs: TeacherOutputs | None = None,
        teacher_classes: list[int] | None = None,
        student_classes: list[int] | None = None,
        teacher_inputs: TeacherView | None = None,
    ) -> None:
        super().__init__()
        student, losses = check_one_student(self, student, students, losses)
        if isinstance(task_weight, Mapping):  # a schedule's description out of a checkpoint
            task_weight = cast(Schedule, restore(task_weight, Schedule))
        if not all(0.0 <= value < float("inf") for value in extremes(task_weight)):
            raise ValueError(f"DistillationModule: expected a finite task_weight >= 0, got {task_weight}.")
        check_task_loss(task_loss, alone=losses is None and teacher is None)
        self.output_options = Outputs(logits, teacher_logits, teacher_outputs, teacher_classes, student_classes)
        self._take_view(teacher_inputs)
        self.student = student
        self.losses = NamedLosses() if losses is None and teacher is None else name_losses(losses or [])
        forget_layers(self.losses)
        self.task_loss = task_loss
        self.task_weight = task_weight
        self.make_optimizer = optimizer
        self.make_lr_scheduler = lr_scheduler
        self.lr_interval = lr_interval
        self.lr: float | None = None
        """Learning rate in place of the optimizer's own; a learning rate finder sets it, and so may you."""
        self._lr_at_setup: float | None = None
        held = as_teacher(teacher, teacher_dtype, teacher_weights)
        self.run = DistillationRun(student, held, self.losses, self, task_weight)
        self.metrics = name_metrics(metrics)
        self._remember_options(dtype_of(teacher_dtype))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the student."""
        return self.student(*args, **kwargs)

    # What users override

    def unpack_batch(self, batch: Any) -> Batch:
        """Take a batch apart; override for batches that are not x, (x, y), (x, y, index) or a dictionary.

        Args:
            batch: A batch of training, validation, test or prediction data.

        Example:
            Unlabelled data beside labelled data, from ``trainer.fit(module, {"labelled": ..., "unlabelled": ...})``:
            the task's loss is of the labelled rows, distillation of all.

            >>> class SemiSupervised(DistillationModule):
            ...     def unpack_batch(self, batch):
            ...         if not isinstance(batch, dict):  # validation data
            ...             return super().unpack_batch(batch)
            ...         (x, y), more = batch["labelled"], batch["unlabelled"]
            ...         hidden = y.new_full((len(more),), -100)  # what CrossEntropyLoss leaves out
            ...         return Batch(args=(torch.cat((x, more)),), target=torch.cat((y, hidden)))
            >>> module = SemiSupervised(nn.Linear(4, 3), task_loss=nn.CrossEntropyLoss())
            >>> batch = {"labelled": (torch.zeros(2, 4), torch.tensor([2, 0])), "unlabelled": torch.zeros(1, 4)}
            >>> module.unpack_batch(batch).target
            tensor([   2,    0, -100])
        """
        own, taken = self.task_loss == "model", self.run.taken_columns
        return batches.for_student(batches.unpack_batch(batch), batch, self.student, with_labels=own, without=taken)

    def shard_student(self, student: nn.Module, mesh: DeviceMesh) -> None:
        """Split the student over the processes of a ``ModelParallelStrategy``; override for another sharding."""
        shard(student, mesh)

    def shard_teacher(self, teacher: nn.Module, mesh: DeviceMesh) -> None:
        """Split the teacher over the processes of a ``ModelParallelStrategy``.

        Override for another sharding, such as ``shard(teacher, mesh, reshard_after_forward=True,
        offload_policy=CPUOffloadPolicy())``, or to do nothing: each process then holds the whole teacher.
        """
        shard(teacher, mesh, reshard_after_forward=True)

    # A training loop of your own, in place of the Trainer's

    def prepare(self, batch: Any) -> None:
        """Build the losses for the sizes of a batch; only where no Trainer does it, such as in a loop with Fabric.

        Call it before :meth:`configure_optimizers`, so that the optimizer knows the losses' parameters. Then
        :meth:`training_step` returns the whole loss of a batch. A loss that needs each sample's row asks for its
        ``set_dataset`` first, and one with a first stage for its ``stage_length``.

        Args:
            batch: A batch of the training data.

        Raises:
            ValueError: If a loss cannot work on these sizes, needs a teacher and there is none, or has a first stage
                of a length that only a Trainer could tell.

        Example:
            >>> from functools import partial
            >>> from lightning.fabric import Fabric
            >>> from lightning_kd.losses import KDLoss
            >>> fabric = Fabric(accelerator="cpu", devices=1)
            >>> module = DistillationModule(
            ...     nn.Linear(4, 3),
            ...     teacher=nn.Linear(4, 3),
            ...     losses=[KDLoss(temperature=4.0, weight=0.9)],
            ...     task_loss=nn.CrossEntropyLoss(),
            ...     optimizer=partial(torch.optim.SGD, lr=0.05),
            ... )
            >>> batches = [(torch.randn(8, 4), torch.randint(0, 3, (8,))) for _ in range(2)]
            >>> module.prepare(batches[0])
            >>> model, optimizer = fabric.setup(module, module.configure_optimizers())
            >>> for step, batch in enumerate(batches):
            ...     module.set_moment(step)
            ...     with fabric.autocast():
            ...         loss = model.training_step(batch, step)
            ...     fabric.backward(loss)
            ...     optimizer.step()
            ...     optimizer.zero_grad()
            >>> list(module.run.log.flush())  # the means since the last call
            ['loss', 'task', 'kd']
        """
        leaves = self.run.objective.leaves
        open_ended = [name for name, loss in leaves if loss.stage and loss.stage.length is None]
        if open_ended:
            raise ValueError(
                f"The first stage of {open_ended} is by default a tenth of the Trainer's run, but there is no Trainer; "
                "give stage_length."
            )
        batch = move_data_to_device(batch, device_of(self.student))
        self.run.setup.prepare(batch, self._call_student, self)
        keep_from_ddp(self, "losses", self.losses)

    def set_moment(self, step: int, epoch: int = 0) -> None:
        """Tell schedules and stages how far a loop of your own has come; a Trainer tells them itself.

        Args:
            step: Number of optimizer steps done.
            epoch: Number of epochs done.
        """
        self.run.clock.set_moment(Moment(step, epoch))

    # Training

    def setup(self, stage: str) -> None:
        """Learn the sizes from one small batch and build the losses."""
        self.run.leave()
        self._lr_at_setup = self.lr
        ModuleHooks(self.run, self._take_up_lr).join(self.trainer)
        self.set_up(stage, self)

    def set_up(self, stage: str, whole: LightningModule, prefix: str = "", batch: Any = None) -> None:
        """Set up without hooks, within the whole that a Trainer runs; with a batch of its data, if one is read."""
        self.run.join(self.trainer, self)
        if mesh_of(self.trainer) is not None:
            # until the end of the run: Lightning 2.6 asks after the call, too, whether configure_model is overridden
            self.run.patches.replace(self, "configure_model", partial(self._configure_and_split, self.configure_model))
        if stage != "fit":
            self.run.step.attach()
            return
        example = self.example_input_array
        if batch is None:
            batch = probe_batch(self.trainer, self, self.run.patches) if example is None else (example,)
        self.run.prepare(self.trainer, self, batch, partial(batches.call_in_words, self._call_student))
        if self.task_loss is None:
            check_trains_on(self.run.objective, self.trainer)
        self.run.attach_losses(self.trainer, whole, f"{prefix}losses")
        if example is None and isinstance(self.task_loss, nn.Module):
            with drawing_nothing(self):
                check_target(self.unpack_batch(batch))

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Make the optimizer and scheduler that were asked for, over all parameters that train: the student's first."""
        if self._trainer is not None and not self._trainer.state.stopped:
            self._capture()  # refuses a set-up that was left out, before the first step
        return configure(
            self.make_optimizer(self.trained_parameters()), self.make_lr_scheduler, self.lr_interval, self.lr
        )

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the weighted sum of the task's loss and the distillation losses."""
        # read once a step: an unpack_batch that draws (mixup, cropping) must give student and losses the same draw
        read = self.unpack_batch(batch)
        capture = self._capture()
        with capture.recording() as call, self.run.step.thin():
            task = counted = None
            if self.run.clock.goal.runs_student:
                task = self._task(capture.call(*read.args, **read.kwargs), read)
                if task is not None:
                    task, counted = of_all_labels(task, self.run.own_loss.unless(self.task_loss), read.target)
            else:  # a first stage without the student reads its inputs alone
                call.args, call.kwargs = read.args, read.kwargs
            return self.run.loss(self, batch, lambda: read, [call], task, counted)

    def lr_scheduler_step(self, scheduler: LRSchedulerTypeUnion, metric: Any | None) -> None:
        """Move the learning rate on, except in a stage before the main training."""
        if not self.run.clock.was_in_stage(self):
            super().lr_scheduler_step(scheduler, metric)

    # Evaluation

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Log val/loss, val/accuracy, val/agreement, and once val/teacher_accuracy."""
        self._evaluate(batch, "val", dataloader_idx)

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Log test/loss, test/accuracy, test/agreement and test/teacher_accuracy."""
        self._evaluate(batch, "test", dataloader_idx)

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        """Return the student's logits, or its whole output if it has none."""
        output = self._call_student(batch)
        logits = self.logits_of(output)
        return output if logits is None else logits

    # State

    def export(
        self,
        path: str | os.PathLike[str],
        format: Format | None = None,  # noqa: A002  the field's own name
        *,
        dtype: Precision | torch.dtype | None = None,
        example: Example | None = None,
        dynamic_batch: bool = True,
    ) -> None:
        """Write the student, and nothing else, as a file of its own; at any time, also in the middle of a fit.

        Takes the arguments of :func:`lightning_kd.export_student`. The example is by default ``example_input_array``,
        or zeros of the sizes that the training data had at the beginning of the fit.
        """
        if example is None:
            example = self.run.example() if self.example_input_array is None else self.example_input_array
        export_student(self.student, path, format, dtype=dtype, example=example, dynamic_batch=dynamic_batch)

    @_restricted_classmethod  # as on the method that this one overrides; Lightning 2.6 has no public name for it
    def load_from_checkpoint(
        cls,  # noqa: N805  it is a class method
        checkpoint_path: str | Path | IO[bytes],
        map_location: Any = None,
        hparams_file: str | Path | None = None,
        strict: bool | None = None,
        weights_only: bool | None = None,
        **kwargs: Any,
    ) -> Self:
        """Make the module that a checkpoint was written of, without running code from the file.

        A checkpoint of the command line names the classes that the module is made of. Only classes of modules that
        are imported already are made, with the arguments that the checkpoint gives: import those that define your
        networks first.

        Args:
            checkpoint_path: The checkpoint: path, URL or open file.
            map_location: Where to put the tensors; by default where they were.
            hparams_file: Takes the place of the options in the checkpoint.
            strict: Whether every weight must be there; it must by default.
            weights_only: By default only tensors and plain data are read; ``False`` unpickles a file that you trust.
            **kwargs: Options that take the place of those in the checkpoint, such as ``student`` and ``teacher``.

        Raises:
            ValueError: If the file holds more than tensors and plain data, or names a class that is not imported.
        """
        if weights_only is None or weights_only:
            weights_only = True
            check_class_names(load_plain(checkpoint_path), checkpoint_path, kwargs, cls)
        return super().load_from_checkpoint(
            checkpoint_path, map_location, hparams_file, strict, weights_only=weights_only, **kwargs
        )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what resuming needs beside weights, to a checkpoint of weights alone too."""
        if not already_saved(checkpoint):
            self.run.save(self.trainer, checkpoint)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check that the checkpoint fits, and build the losses for its sizes."""
        if not is_sharded(self):  # whose strategy has loaded the weights by now
            check_same_architecture(checkpoint["state_dict"], self, "student.", "student")
        self.run.load(checkpoint, self._trainer)

    def _apply(self, fn: Any, recurse: bool = True) -> "DistillationModule":
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if isinstance(self.run.teacher, FrozenTeacher):
            self.run.teacher.apply(fn)
        return self

    def _configure_and_split(self, configure_model: Callable[[], None]) -> None:
        configure_model()
        self.run.split(self.trainer, self.shard_student)

    def _take_up_lr(self) -> None:
        """Make optimizer and scheduler anew if a finder has set the learning rate since set-up."""
        if self.lr != self._lr_at_setup:  # a scheduler knows the rates that it was made with
            self.trainer.strategy.setup_optimizers(self.trainer)

    def _capture(self) -> Capture:
        """Return what records the student's call, or raise a ``RuntimeError`` if nothing was set up."""
        capture = self.run.step.capture
        if not capture.attached:
            raise RuntimeError(
                f"The losses are not set up. If {type(self).__name__}.setup is your own, begin it with "
                "super().setup(stage); in a loop of your own call module.prepare(batch) first."
            )
        return capture

    def _call_student(self, batch: Any) -> Any:
        read = self.unpack_batch(batch)
        return self.run.step.capture.call(*read.args, **read.kwargs)

    def _task(self, output: Any, read: Batch) -> Tensor | None:
        if self.task_loss == "model":
            return self.run.own_loss(output, read)
        loss, logits, target = self.task_loss, self.logits_of(output), read.target
        return None if loss is None else self.run.task.during(lambda: task_term(loss, logits, target), lambda _: logits)

    def _evaluate(self, batch: Any, prefix: str, loader: int) -> None:
        read, capture, look = self.unpack_batch(batch), self._capture(), self.run.evaluation
        with capture.recording() as call:
            output = capture.call(*read.args, **read.kwargs)
            own = self.task_loss == "model" and own_loss(output) is not None
            task = self._task(output, read) if own or read.target is not None else None  # may tell what the task is
            look.compare(self, batch, call, read, self.task_loss, prefix=prefix, loader=loader)
            look.log_loss(self, call, task, self.task_loss, read.target, prefix=prefix, loader=loader)

    def _remember_options(self, dtype: torch.dtype | None) -> None:
        # LightningCLI has the class paths of every module; Lightning 2.6 tells its presence by a private name only
        if _given_hyperparameters.get() is not None:
            self.save_hyperparameters()
            return
        self.save_hyperparameters(options_of(self, dtype))
