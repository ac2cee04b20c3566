"""Student against teacher on validation and test data."""

from typing import Any

from lightning.pytorch import LightningModule
from lightning.pytorch.trainer.states import TrainerFn
from lightning_utilities.core.rank_zero import rank_zero_info
from torch import Tensor

from lightning_kd.capture.call import Call
from lightning_kd.engine.step import TrainingStep
from lightning_kd.metrics import Comparison
from lightning_kd.teachers.base import NO_LESSON

_ON_THE_BAR = ("accuracy", "teacher_accuracy")
"""What the progress bar shows beside the loss; more would leave no room for the bar itself."""


class Evaluation:
    """Compares the student's calls with the teacher's answers, and logs what the comparison gives.

    Args:
        step: The training step, which asks the teacher.
    """

    def __init__(self, step: TrainingStep) -> None:
        self.step = step
        self.comparisons: dict[int, Comparison] = {}
        """Student against teacher in the evaluation that is going on, by the number of the data loader."""
        self.results: dict[str, float] = {}
        """What the last evaluation gave, on its first data loader."""
        self._told: set[str] = set()
        self.teacher_accuracy: float | None = None
        """The teacher's accuracy, which a fit logs once."""

    def start(self) -> None:
        """Begin an evaluation anew, whatever became of the last one."""
        self.comparisons = {}

    def compare(
        self,
        module: LightningModule,
        batch: Any,
        call: Call,
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
            call: The student's recorded call.
            target: The batch's target, ``None`` without one.
            prefix: What the names begin with, ``"val"`` or ``"test"``.
            loader: Number of the data loader.
            with_student: Whether to log the student's accuracy too.
        """
        lesson = self.step.ask(batch, call) if self.step.teacher_ready else NO_LESSON
        logits_of = self.step.hooks.logits_of
        teacher_logits = None if lesson is NO_LESSON else logits_of(lesson.output)
        if loader not in self.comparisons:
            mark = getattr(getattr(module, "task_loss", None), "ignore_index", None)
            self.comparisons[loader] = Comparison() if mark is None else Comparison(mark)
        comparison = self.comparisons[loader]
        comparison.update(logits_of(call.output), teacher_logits, target)
        self._say_what_is_left_out(comparison)
        if module.trainer.barebones:
            return
        fitting = module.trainer.state.fn == TrainerFn.FITTING
        for name, metric in comparison.updated().items():
            known = name == "teacher_accuracy" and fitting and self.teacher_accuracy is not None
            if not known and (with_student or name != "accuracy"):
                # Lightning 2.6 finds a metric by the name of its attribute, which a metric outside the module lacks
                shown = name in _ON_THE_BAR
                module.log(f"{prefix}/{name}", metric, prog_bar=shown, metric_attribute=name)

    def _say_what_is_left_out(self, comparison: Comparison) -> None:
        for name, reason in comparison.left_out.items():
            if name not in self._told:
                self._told.add(name)
                rank_zero_info(f"{name} is left out of the evaluation: {reason}.")

    def end(self, module: LightningModule, *, tuning: bool) -> None:
        """Keep what the evaluation gave; the teacher's accuracy is logged once in a fit."""
        trainer, first = module.trainer, self.comparisons.get(0)
        self.results = {} if first is None else first.compute()
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking and not tuning:
            self.teacher_accuracy = self.results.get("teacher_accuracy", self.teacher_accuracy)
