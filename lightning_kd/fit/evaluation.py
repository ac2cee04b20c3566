"""Student against teacher on validation and test data."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.trainer.states import TrainerFn
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor, nn

from lightning_kd.capture.batch import Batch
from lightning_kd.capture.call import Call
from lightning_kd.capture.documents import position_ids_of
from lightning_kd.engine.checks import scalar
from lightning_kd.engine.labels import as_class_ids, check_classes
from lightning_kd.engine.model_loss import ModelLoss
from lightning_kd.engine.own_tokens import reads_other_tokens
from lightning_kd.engine.reading import has_heads
from lightning_kd.engine.step import TrainingStep
from lightning_kd.engine.task import count_of_labels, labels_of
from lightning_kd.fit.names import Names
from lightning_kd.fit.patches import Patches
from lightning_kd.fit.task_watch import TaskWatch
from lightning_kd.fit.token_means import TokenMeans
from lightning_kd.metrics import Comparison
from lightning_kd.metrics.counts import WeightedMean
from lightning_kd.metrics.given import GivenMetrics, Metrics, name_metrics, shifts_for
from lightning_kd.metrics.task import Task
from lightning_kd.teachers.base import NO_LESSON, Lesson

_OF_STUDENT_ALONE = ("accuracy", "f1", "mse", "pearson", "cosine", "perplexity")
"""What a user's own module logs itself."""
_ON_THE_BAR = (*_OF_STUDENT_ALONE[:3], "teacher_accuracy", "teacher_f1", "teacher_mse", "perplexity")
"""What the progress bar shows beside the loss; more would leave no room for the bar itself."""


@dataclass(frozen=True, slots=True)
class Compared:
    """One batch of an evaluation: both calls, what was read of them, and the target."""

    call: Call
    lesson: Lesson
    logits: Tensor | None
    teacher_logits: Tensor | None
    target: Any


class Evaluation:
    """Compares the student's calls with the teacher's answers, and logs what the comparison gives.

    Args:
        step: The training step, which asks the teacher.
        task: What is known of the task.
        names: Whose the names are that are logged.
    """

    def __init__(self, step: TrainingStep, task: TaskWatch, names: Names, own_loss: ModelLoss) -> None:
        self.step = step
        self.own_loss = own_loss
        self.task = task
        self.names = names
        self._waiting: list[tuple[str, Any, dict[str, Any]]] = []
        """Name, value and options of what is logged when the batch ends."""
        self._agreed: set[int] = set()
        """The data loaders whose names all processes have agreed on."""
        self.metrics = name_metrics(None)
        """The user's metrics, which are computed beside ours."""
        self.given: dict[int, GivenMetrics] = {}
        """Copies of the user's metrics in the evaluation that is going on, by the number of the data loader."""
        self.comparisons: dict[int, Comparison] = {}
        """Student against teacher in the evaluation that is going on, by the number of the data loader."""
        self._losses: dict[int, WeightedMean] = {}
        """The task's loss in the evaluation that is going on, by the number of the data loader."""
        self.results: dict[str, float] = {}
        """What the last evaluation gave, on its first data loader."""
        self.tokens = TokenMeans(step)
        """Means over the tokens of the evaluation that is going on."""
        self.readers: list[Callable[[Compared], None]] = []
        """Who else gets each batch of the first data loader; they change nothing."""
        self._told: set[str] = set()
        self.teacher_accuracy: float | None = None
        """The teacher's accuracy, which a fit logs once, unless teacher or data may change."""

    def take(self, metrics: Metrics, task: Task) -> None:
        """Compute a user's metrics in every evaluation, for student and teacher, and take what their loss tells."""
        self.metrics = name_metrics(metrics)
        self.task.tell(task)

    def start(self, module: LightningModule) -> None:
        """Begin an evaluation anew, whatever became of the last one."""
        self.comparisons = {}
        self.given = {}
        self._losses = {}
        self._waiting = []
        self._agreed = set()
        trainer = module.trainer
        if self.step.teacher is not None:
            self.step.teacher.begin_split("test" if trainer.testing else "val")
        self.tokens.start(in_fit=trainer.state.fn == TrainerFn.FITTING)
        batches = trainer.num_test_batches if trainer.testing else trainer.num_val_batches
        self.names.start_evaluation(several=len(batches) > 1)

    def join(self, module: LightningModule, patches: Patches) -> None:
        """Log the values of a batch after the module's own hook of its end, by when the user's names are known."""
        for hook in ("on_validation_batch_end", "on_test_batch_end"):
            theirs = getattr(module, hook)
            both = partial(self._end_batch, module, theirs)
            both.__wrapped__ = theirs  # type: ignore[attr-defined]  # Lightning 2.6 looks at the arguments by this name
            patches.replace(module, hook, both)

    def _end_batch(self, module: LightningModule, hook: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        result = hook(*args, **kwargs)
        self._write(module, loader=args[3] if len(args) > 3 else 0)
        return result

    def _write(self, module: LightningModule, loader: int) -> None:
        """Log what waits and whose name is not the user's."""
        self.names.end_batch(module, loader)
        waiting, self._waiting = self._waiting, []
        if loader not in self._agreed:
            self._agreed.add(loader)
            self.names.agree(module, [self.names.of_loader(name, loader) for name, _, _ in waiting])
        for name, value, options in waiting:
            if self.names.ours(module, self.names.of_loader(name, loader)):
                self.names.log(module, name, value, **options)

    def compare(
        self,
        module: LightningModule,
        batch: Any,
        call: Call,
        read: Batch,
        task_loss: nn.Module | Literal["model"] | None = None,
        *,
        prefix: str,
        loader: int,
        with_student: bool = True,
    ) -> None:
        """Compare the student's recorded call with the teacher on one batch, and log what the comparison will give.

        With several data loaders each has names of its own, which end as those of everything that is logged in an
        evaluation step: ``val/agreement/dataloader_idx_1``.

        Args:
            module: The module that is evaluated.
            batch: The batch.
            call: The student's recorded call.
            read: The batch taken apart, of which target and mask are used if they are there.
            task_loss: The task's own loss.
            prefix: What the names begin with, ``"val"`` or ``"test"``.
            loader: Number of the data loader.
            with_student: Whether to log the student's accuracy too.
        """
        self.step.positions.check(batch, call)
        self.step.capture.check_unchanged(call, with_output=True, with_layers=False)  # which are not read here
        lesson = self.step.ask(batch, call, lambda: read) if self.step.teacher_ready else NO_LESSON
        read = self.step.as_called(read, call)
        teacher_logits = self.step.reading.teacher_logits(lesson)
        if reads_other_tokens(read):
            teacher_logits = None  # which have no labels among the student's
        logits = self.step.reading.student_logits(call, training=False)
        self.tokens.own_loss = isinstance(task_loss, str)
        self.tokens.positions = position_ids_of(call, self.step.student)
        target = as_class_ids(read.target, logits)
        predicted = self.tokens.target(read, target, logits)
        if loader not in self.comparisons:
            check_classes(self.step.objective.leaves, target, logits)
            self.comparisons[loader] = Comparison(self.task.task)
            # a loss of probabilities, such as BCELoss, is of this kind
            self.given[loader] = GivenMetrics(self.metrics, probabilities=self.task.task.kind == "other")
        comparison, given = self.comparisons[loader], self.given[loader]
        if logits is None and (heads := has_heads(call.output)) and prefix not in self._told:
            self._told.add(prefix)
            rank_zero_warn(
                f"{prefix}/agreement is left out: which of the student's outputs is meant is not known{heads}."
            )
        if predicted is None:
            comparison.update(logits, teacher_logits, target, self.step.mask_of_output(read))
        else:  # a causal model predicts the token after each position
            comparison.update(logits, teacher_logits, predicted)
        given.update(logits, teacher_logits, target, predicted, shift=self.tokens.shift)
        self._say_what_is_not_shifted(logits, target, predicted)
        if loader == 0 and not module.trainer.sanity_checking:
            for reader in self.readers:
                reader(Compared(call, lesson, logits, teacher_logits, target))
        if module.trainer.barebones:
            return
        own = {
            name: metric
            for name, metric in comparison.updated().items()
            if with_student or name not in _OF_STUDENT_ALONE
        }
        known = module.trainer.state.fn == TrainerFn.FITTING and self.teacher_accuracy is not None
        of_tokens = self.tokens.update(
            loader,
            read,
            lambda: self.step.tensors(call, lesson, read),
            (logits, teacher_logits),
            target=predicted,
            with_teacher=not known,
            with_total=with_student and task_loss is None,
        )
        if not with_student:
            of_tokens.pop("perplexity", None)
        for name, metric in {**own, **of_tokens, **given.updated()}.items():
            if not (known and name.startswith("teacher_")):
                # Lightning 2.6 finds a metric by the name of its attribute, which a metric outside the module lacks
                shown = name in _ON_THE_BAR
                self._waiting.append((f"{prefix}/{name}", metric, {"prog_bar": shown, "metric_attribute": name}))
        if not module.trainer.sanity_checking:
            self._say_what_is_left_out(comparison, prefix, with_student=with_student)

    def log_loss(
        self,
        module: LightningModule,
        call: Call,
        task: Tensor | None,
        task_loss: nn.Module | Literal["model"] | None,
        target: Any,
        *,
        prefix: str,
        loader: int,
    ) -> None:
        """Log the task's loss on one batch, if it has one; it counts as often as the batch has labels, or by weight."""
        if task is None:
            return
        if call.empty:  # weighs nothing, but the mean of nothing is NaN
            task = task.nan_to_num(0.0, 0.0, 0.0)
        if module.trainer.barebones:
            return
        if task_loss is not None:
            self.own_loss.settle(self.step, task_loss, call, target)
        loss, value = self.own_loss.unless(task_loss), scalar("task", task)
        weight = None
        if isinstance(loss, nn.Module) and getattr(loss, "weight", None) is not None:
            weight = labels_of(loss, target)
        if weight is None:
            count = count_of_labels(loss, target, call.rows(self.step.batch_axis))
            if isinstance(task_loss, str):
                value, router = self.tokens.without_router(call.output, value, count, loader)
                if router is not None:
                    self._waiting.append((f"{prefix}/router", router, {"metric_attribute": "router"}))
            if module.trainer.world_size == 1:
                self._waiting.append((f"{prefix}/loss", value, {"batch_size": count, "sync_dist": True}))
                return
            # Lightning 2.6 rounds the mean of the processes' counts down to a whole number, so we add up ourselves
            weight = torch.tensor(count, dtype=torch.float64)
        self._losses.setdefault(loader, WeightedMean().to(value.device)).update(value, weight)
        self._waiting.append((f"{prefix}/loss", self._losses[loader], {"metric_attribute": "loss"}))

    def _say_what_is_left_out(self, comparison: Comparison, prefix: str, *, with_student: bool) -> None:
        """Say once in a run which values are not logged, and why."""
        for name, why in comparison.left_out.items():
            if name not in self._told and (with_student or name not in _OF_STUDENT_ALONE):
                self._told.add(name)
                rank_zero_warn(f"{prefix}/{name} is left out: {why}.")

    def _say_what_is_not_shifted(self, logits: Tensor | None, target: object, predicted: Tensor | None) -> None:
        """Say once of which metrics of the user's the logits of tokens are compared with the label beside them."""
        if logits is None or logits.ndim != 3 or not isinstance(target, Tensor) or target.shape != logits.shape[:-1]:
            return
        if target.is_floating_point() or "metrics" in self._told:
            return
        if predicted is None:
            names, why = list(self.metrics), "it is not known whether a position predicts the token after it"
        elif self.tokens.shift:
            names = [name for name, metric in self.metrics.items() if not shifts_for(metric)]
            why = "they are your own"
        else:
            return
        self._told.add("metrics")
        if names:
            rank_zero_info(
                f"metrics: {', '.join(names)} get logits {tuple(logits.shape)} and labels of the same positions, not "
                f"shifted, since {why}. For a causal model let the metric compare logits[:, :-1] with labels[:, 1:]."
            )

    def end(self, module: LightningModule, *, tuning: bool) -> None:
        """Keep what the evaluation gave; the accuracy of a teacher and data that stay is logged once in a fit."""
        self.names.end_evaluation()
        if self.step.teacher is not None:
            self.step.teacher.begin_split("train")
        trainer, first = module.trainer, self.comparisons.get(0)
        self.results = {} if first is None else first.compute()
        unread = [name for name in self.results if first is not None and first.unread(name)]
        if unread and first is not None and not trainer.sanity_checking:
            why = (
                "the step calls the student with other samples than some batches hold, whose targets are not known. "
                "Override unpack_batch of the callback to return those that count."
                if first.lost_target
                else "the target holds ids that are no class of the outputs. Name the id of what has no label by "
                "task_loss=CrossEntropyLoss(ignore_index=...), or give metrics=... of your own."
            )
            rank_zero_warn(f"{', '.join(unread)}: not a number, since {why}")
        changes = self.step.teacher is not None and self.step.teacher.changes_over_time
        # new loaders may hold other data, of which the teacher's accuracy is another
        changes = changes or getattr(trainer, "reload_dataloaders_every_n_epochs", 0) > 0
        if trainer.state.fn == TrainerFn.FITTING and not (trainer.sanity_checking or tuning or changes):
            self.teacher_accuracy = self.results.get("teacher_accuracy", self.teacher_accuracy)
