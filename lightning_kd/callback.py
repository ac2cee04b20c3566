"""The second door: a callback that distils into the user's own LightningModule."""

import functools
import os
from collections.abc import Mapping, Sequence
from typing import Any, get_args

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from lightning_kd.capture import batch as batches
from lightning_kd.capture.batch import Batch
from lightning_kd.capture.call import Call, with_versions
from lightning_kd.capture.example import Example
from lightning_kd.capture.heads import Head
from lightning_kd.capture.outputs import Outputs, TeacherOutputs
from lightning_kd.capture.rehearsal import call_until_student, inputs_of
from lightning_kd.capture.rows import NOT_OF_BATCH, is_changed_since, is_of_batch, leaves_of
from lightning_kd.capture.store import Calls
from lightning_kd.distributed.sharding import mesh_of, shard
from lightning_kd.distributed.whole_state import is_sharded
from lightning_kd.engine.begin_anew import forget_layers
from lightning_kd.export.student import Format, export_student
from lightning_kd.files.checkpoint import CHECKPOINT_KEY, check_same_architecture
from lightning_kd.files.precision import Precision
from lightning_kd.fit.door import ReadsOutputs
from lightning_kd.fit.find_student import find_student
from lightning_kd.fit.first_batch import probe_batch
from lightning_kd.fit.hooks import FitHooks
from lightning_kd.fit.joined_optimizer import join_optimizer
from lightning_kd.fit.losses_inside import ATTRIBUTE, drop_losses, fill_losses, take_out
from lightning_kd.fit.parts import check_between_fits
from lightning_kd.fit.patches import Patches
from lightning_kd.fit.run import DistillationRun
from lightning_kd.fit.stages import wait_in_stages
from lightning_kd.losses.base import DistillationLoss
from lightning_kd.losses.naming import NamedLosses, name_losses
from lightning_kd.losses.older import suit_checkpoint
from lightning_kd.metrics.given import Metrics, name_metrics
from lightning_kd.metrics.task import Task, first_known
from lightning_kd.teachers.base import Teacher
from lightning_kd.teachers.frozen import FrozenTeacher, as_teacher
from lightning_kd.teachers.inputs import TeacherView


class DistillationCallback(ReadsOutputs, FitHooks):
    r"""Add distillation losses to what the user's own ``training_step`` returns.

    .. math::
        L = L_{theirs} + \sum_i w_i \, L_i(S, T)

    The teacher is fed exactly what the student inside the module was called with, so no batch format needs to be
    known. The module's checkpoint keeps its own keys only; the losses' weights are stored beside them. A
    ``validation_step`` that calls ``self.training_step`` gets your own loss alone.

    Args:
        teacher: The trained module to learn from, frozen here, or a ``Teacher`` of another kind; ``None`` where another
            callback makes it of the student (EMATeacher, BornAgain), or no loss needs one.
        losses: The distillation losses, each with its own weight.
        student: Dotted name of the student inside the module, ``""`` if the module itself is the network; by
            default its only child with parameters.
        student_calls: Which calls of the student the losses compare: its only one (a step with several is refused), or
            of several the first, the last, or each, one after the other, whose mean is taken. What a training step
            calls under ``torch.no_grad()`` does not count.
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

    Under a ``ModelParallelStrategy`` the module splits the student in its own ``configure_model``; the callback splits
    the teacher and the losses, and the losses' weights are then among the checkpoint's own.

    Raises:
        ValueError: If the list of losses is empty, or a layer does not exist.

    Example:
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> from lightning_kd.losses import KDLoss
        >>> callback = DistillationCallback(nn.Linear(32, 2), losses=[KDLoss(temperature=2.0)])
        >>> trainer = Trainer(callbacks=[callback], fast_dev_run=True, logger=False, accelerator="cpu",
        ...                   enable_progress_bar=False, enable_model_summary=False)
        >>> trainer.fit(BoringModel())
    """

    def __init__(
        self,
        teacher: nn.Module | Teacher | None,
        losses: Sequence[DistillationLoss],
        *,
        student: str | None = None,
        student_calls: Calls = "one",
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
        if student_calls not in get_args(Calls):
            raise ValueError(
                f"DistillationCallback: expected student_calls to be one of {list(get_args(Calls))}, got "
                f"{student_calls!r}."
            )
        self.output_options = Outputs(logits, teacher_logits, teacher_outputs, teacher_classes, student_classes)
        self._take_view(teacher_inputs)
        self.teacher = as_teacher(teacher, teacher_dtype, teacher_weights)
        self.losses = name_losses(losses)
        forget_layers(self.losses)
        self.student = student
        self.student_calls: Calls = student_calls
        self.metrics = name_metrics(metrics)
        self._call: Call | None = None
        self._student_name = ""
        self._patches = Patches()

    @property
    def teacher(self) -> Teacher | None:
        """Who answers; another one may be assigned between two fits."""
        return self._teacher

    @teacher.setter
    def teacher(self, teacher: nn.Module | Teacher | None) -> None:
        check_between_fits(self._run, "teacher", type(self).__name__)
        self._teacher = as_teacher(teacher)

    @property
    def losses(self) -> NamedLosses:
        """The losses by name; others may be assigned between two fits, as a list."""
        return self._losses

    @losses.setter
    def losses(self, losses: Sequence[DistillationLoss] | NamedLosses) -> None:
        check_between_fits(self._run, "losses", type(self).__name__)
        self._losses = losses if isinstance(losses, NamedLosses) else name_losses(losses)

    # What users override

    def unpack_batch(self, batch: Any) -> Batch:
        """Take a batch apart, for losses that need the target or the index."""
        return batches.unpack_batch(batch)

    def shard_teacher(self, teacher: nn.Module, mesh: DeviceMesh) -> None:
        """Split the teacher over the processes of a ``ModelParallelStrategy``; see DistillationModule.shard_teacher."""
        shard(teacher, mesh, reshard_after_forward=True)

    # Training

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Build the losses as soon as the module has made its networks, in ``setup`` or in ``configure_model``."""
        if stage not in ("fit", "validate", "test"):
            return
        self._restore(pl_module)
        _check_alone(trainer)
        if stage == "fit" and not pl_module.automatic_optimization:
            raise MisconfigurationException(
                "DistillationCallback adds to the loss that training_step returns, which manual optimization ignores. "
                "Set automatic_optimization = True, or subclass DistillationModule."
            )
        if stage == "fit" and is_param_in_hook_signature(pl_module.training_step, "dataloader_iter", explicit=True):
            raise MisconfigurationException(
                "A training_step(dataloader_iter) takes its batches itself, where DistillationCallback does not see "
                "them. Write training_step(batch, batch_idx)."
            )
        build = functools.partial(self._build, trainer, pl_module, stage)
        if is_overridden("configure_model", pl_module):
            build = functools.partial(self._patches.after, pl_module, "configure_model", build)
        self._patches.after(pl_module, "setup", build)

    def _build(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find the student, build the losses, and wrap the module's training step."""
        student = find_student(pl_module, self.student)
        self._student_name = next(name for name, module in pl_module.named_modules() if module is student)
        earlier = self._run
        if earlier is not None and earlier.student is not student:  # the losses begin anew
            forget_layers(self.losses)
            earlier = None
        run = DistillationRun(student, self.teacher, self.losses, self, calls=self.student_calls, patches=self._patches)
        self._run = run
        if earlier is not None and earlier.objective.losses is self.losses:
            run.setup.go_on_from(earlier.setup)
        own = [Task.of_loss(c, called_directly=False) for c in pl_module.children() if c is not student]
        run.evaluation.take(self.metrics, first_known(own))
        for name in ("validation_step", "test_step"):
            if run.task.watching and is_overridden(name, pl_module):
                self._patches.replace(pl_module, name, self._watch(getattr(pl_module, name)))
        run.join(trainer, pl_module)
        run.step.attach()
        if stage != "fit":
            run.split(trainer)
            return
        if mesh_of(trainer) is None:
            self._wrap_state(pl_module)
        batch = probe_batch(trainer, pl_module, self._patches)
        call_student = functools.partial(call_until_student, pl_module, student)
        run.prepare(trainer, pl_module, batch, call_student)
        pl_module.add_module(ATTRIBUTE, self.losses)
        run.attach_losses(trainer, pl_module, ATTRIBUTE)
        self._patches.replace(pl_module, "training_step", self._wrap(pl_module.training_step, pl_module))
        run.split(trainer)
        if run.objective.stages:
            wait_in_stages(pl_module, run.clock, self._patches)

    def student_of(self, pl_module: LightningModule) -> nn.Module:
        """Return the module that is the student by now."""
        return pl_module.get_submodule(self._student_name)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Have the losses' parameters optimized, and take up a resumed run where it stopped."""
        named = {f"{ATTRIBUTE}.{name}": p for name, p in self.losses.named_parameters() if p.requires_grad}
        join_optimizer(trainer.optimizers, named)
        self._place_teacher(trainer)
        super().on_fit_start(trainer, pl_module)

    # Evaluation

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Bring the teacher to the student's device."""
        self._place_teacher(trainer)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Bring the teacher to the student's device."""
        self._place_teacher(trainer)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Record the student's call."""
        self._call = self.run.step.capture.start()

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Log val/agreement, and once val/teacher_accuracy, of what the student was called with."""
        self._evaluate(trainer, pl_module, batch, "val", dataloader_idx)

    def on_test_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Record the student's call."""
        self._call = self.run.step.capture.start()

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Log test/agreement and test/teacher_accuracy of what the student was called with."""
        self._evaluate(trainer, pl_module, batch, "test", dataloader_idx)

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
        """Write the student, and nothing else, as a file of its own; in the middle of a fit or after it.

        Takes the arguments of :func:`lightning_kd.export_student`. The example is by default zeros of the sizes that
        the student was called with at the beginning of the fit.

        Raises:
            RuntimeError: If no Trainer has set this callback up.
        """
        student = self.run.student
        losses = take_out(student)  # there if the student is the whole module
        try:
            given = self.run.example() if example is None else example
            export_student(student, path, format, dtype=dtype, example=given, dynamic_batch=dynamic_batch)
        finally:
            if losses is not None:
                student.add_module(ATTRIBUTE, losses)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the losses' weights, and what resuming needs beside weights."""
        if self._run is not None:
            self._run.save(trainer, checkpoint)
            if not is_sharded(self.losses):
                checkpoint[CHECKPOINT_KEY]["losses"] = self.losses.state_dict()
            if mesh_of(trainer) is None:  # where a module writes its own state_dict
                drop_losses(pl_module, checkpoint["state_dict"], "", {})

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take the losses' weights out of a checkpoint that this callback has written."""
        saved: Mapping[str, Any] | None = checkpoint.get(CHECKPOINT_KEY)
        if saved is None or self._run is None:
            return
        self._run.load(checkpoint, trainer)
        if saved["shapes"] is not None and "losses" in saved:
            suit_checkpoint(self.losses, saved["losses"])
            check_same_architecture(saved["losses"], self.losses, "", "distillation loss")
            self.losses.load_state_dict(saved["losses"])

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave the module as it was."""
        self._restore(pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the module as it was."""
        self._restore(pl_module)

    def _restore(self, pl_module: LightningModule) -> None:
        self._patches.undo_all()
        take_out(pl_module)
        if self._run is not None:
            self._run.leave()

    def _wrap(self, step: Any, pl_module: LightningModule) -> Any:
        @functools.wraps(step)
        def training_step(*args: Any, **kwargs: Any) -> Any:
            run = self.run
            if not (run.steps.going_on or pl_module.trainer.training):  # such as by their own validation_step
                return step(*args, **kwargs)
            batch = kwargs["batch"] if "batch" in kwargs else args[0]
            if run.clock.tuning:  # a tuner's trial comes before on_fit_start
                self._place_teacher(pl_module.trainer)
            # read once a step, and only if a loss asks: an unpack_batch may draw
            read = functools.cache(functools.partial(self._read_checked, batch, with_versions(leaves_of(batch))))
            if not run.clock.goal.runs_student:
                call = inputs_of(run.student, functools.partial(step, *args, **kwargs))
                return run.loss(pl_module, batch, read, [call], None)
            capture = run.step.capture
            with capture.recording():
                output = run.task.during(functools.partial(step, *args, **kwargs), self._logits_of_step)
                task = output.get("loss") if isinstance(output, Mapping) else output
                if not isinstance(task, Tensor):  # no step, or none that the Trainer takes
                    return output
                total = run.loss(pl_module, batch, read, capture.counting_calls(), task)
            return {**output, "loss": total} if isinstance(output, Mapping) else total

        return training_step

    def _read_checked(self, batch: Any, held: Sequence[tuple[Tensor, int]]) -> Batch:
        """Take a batch apart for the losses, and refuse one whose rows the step has mixed or reordered."""
        calls = self.run.step.capture.counting_calls() if self.run.clock.goal.runs_student else []
        if not all(self._reads_as_given(batch, call, held) for call in calls):
            raise ValueError(NOT_OF_BATCH)
        return self.unpack_batch(batch)

    def _watch(self, step: Any) -> Any:
        """Wrap a validation or test step, so that the first one tells which loss functions it calls."""

        @functools.wraps(step)
        def evaluation_step(*args: Any, **kwargs: Any) -> Any:
            return self.run.task.during(functools.partial(step, *args, **kwargs), self._logits_of_step)

        return evaluation_step

    def _logits_of_step(self, _: object) -> Tensor | None:
        return self.run.step.reading.known_logits(self.run.step.capture.last_output)

    def _wrap_state(self, pl_module: LightningModule) -> None:
        """Keep the losses out of the module's own state dict; they are stored by :meth:`on_save_checkpoint`."""
        self._patches.add(
            pl_module.register_state_dict_post_hook(drop_losses),
            pl_module.register_load_state_dict_pre_hook(fill_losses),
            pl_module.register_load_state_dict_pre_hook(functools.partial(_check_student, self._student_name)),
        )

    def _place_teacher(self, trainer: Trainer) -> None:
        self.run.place_teacher()
        teacher = self.run.teacher
        if isinstance(teacher, FrozenTeacher) and teacher.dtype is None and not teacher.stays:
            with teacher.telling_of_rounding():
                teacher.module = trainer.precision_plugin.convert_module(teacher.module)

    def _evaluate(self, trainer: Trainer, pl_module: LightningModule, batch: Any, prefix: str, loader: int) -> None:
        call, self._call = self._call, None
        if call is None or not call.called:
            return
        try:
            read = self.unpack_batch(batch)
        except ValueError:  # a batch of the user's own form: no target, no teacher accuracy
            read = Batch()
        with trainer.precision_plugin.forward_context():
            calls = self.run.step.capture.counting_calls()
            known = [self._reads_as_given(batch, one) for one in calls]
            for one, is_known in zip(calls, known, strict=True):
                given = read if is_known else Batch()
                self.run.evaluation.compare(
                    pl_module, batch, one, given, prefix=prefix, loader=loader, with_student=False
                )
            if not any(known) and read.target is not None and loader in self.run.evaluation.comparisons:
                self.run.evaluation.comparisons[loader].lose_target()
        self.run.step.capture.stop()

    def _reads_as_given(self, batch: Any, call: Call, held: Sequence[tuple[Tensor, int]] = ()) -> bool:
        """Whether target and rows of the batch belong to what the student was called with, row by row."""
        if is_overridden("unpack_batch", self, DistillationCallback):
            return True
        return is_of_batch(call, batch) and not is_changed_since(call, held)


def _check_alone(trainer: Trainer) -> None:
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    if sum(isinstance(callback, DistillationCallback) for callback in callbacks) > 1:
        raise MisconfigurationException(
            "There are several DistillationCallbacks; a run takes one. Give one all the losses, and for several "
            "teachers give it lightning_kd.teachers.Ensemble([...])."
        )


def _check_student(
    name: str, module: nn.Module, state: dict[str, Any], prefix: str, _: Any, strict: bool, *__: Any
) -> None:
    """Raise a ``ValueError`` in the user's words if a checkpoint is of another student, before torch finds it."""
    if strict and name:  # else the module itself is the student, whose losses are not in every state
        check_same_architecture(state, module, f"{prefix}{name}.", "student", under=prefix)
