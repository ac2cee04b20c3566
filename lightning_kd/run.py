"""What both doors do at each moment of a run: set up, step, log, evaluate, save and resume."""

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import StochasticWeightAveraging, WeightAveraging
from lightning.pytorch.utilities import CombinedLoader
from lightning.pytorch.utilities.seed import isolate_rng
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from lightning_kd import random_state
from lightning_kd.capture import Record
from lightning_kd.distiller import Distiller, Shapes, device_of, weighted_sum
from lightning_kd.metrics import Comparison
from lightning_kd.part_log import PartLog

CHECKPOINT_KEY = "lightning_kd"


class DistillationRun:
    """The life of a distiller inside a Trainer; the doors forward their hooks to it.

    Args:
        distiller: The engine.
        task_weight: Factor of the task term.
    """

    def __init__(self, distiller: Distiller, task_weight: float = 1.0) -> None:
        self.distiller = distiller
        self.task_weight = task_weight
        self.log = PartLog()
        self.comparison = Comparison()
        self.results: dict[str, float] = {}
        self.teacher_accuracy: float | None = None
        self._random_state: list[dict[str, Any]] | None = None

    def copy_again(self, trainer: Trainer, module: LightningModule) -> None:
        """Let weight-averaging callbacks that were set up before the losses were built copy the module once more."""
        if not self.distiller.losses.state_dict():
            return
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            averages = isinstance(callback, WeightAveraging | StochasticWeightAveraging)
            if averages and callback._average_model is not None:
                callback.setup(trainer, module, "fit")

    def fit_start(self, module: LightningModule) -> None:
        """Bring the teacher to the student's device, and take up a resumed run's random state."""
        self.place_teacher()
        if self._random_state is not None:
            random_state.restore(self._random_state)
            self._random_state = None
        if not self.distiller.student.training:
            rank_zero_warn(
                "The student is in eval mode, so its BatchNorm and dropout layers will not train; "
                "call student.train() before fit unless you froze them on purpose."
            )

    def place_teacher(self) -> None:
        """Bring the teacher to the student's device, for strategies that do not move the module themselves."""
        if self.distiller.teacher is not None:
            self.distiller.teacher.module.to(device_of(self.distiller.student)).eval()

    def training_loss(self, module: LightningModule, batch: Any, record: Record, task: Tensor | None) -> Tensor:
        """Return the whole loss of a recorded step and count its parts.

        Args:
            module: The module that trains.
            batch: The batch.
            record: The student's recorded call.
            task: The unweighted task term, ``None`` without one.
        """
        parts = self.distiller.parts(batch, record)
        base = task if task is None or self.task_weight == 1.0 else self.task_weight * task
        total = weighted_sum(base, parts, self.distiller.losses)
        counted = parts if task is None else {"task": task, **parts}
        self.log.add(total, counted, module.global_step)
        return total

    def before_optimizer_step(self, module: LightningModule) -> None:
        """Hand the means to the Trainer if this step writes a log line."""
        every = module.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if every and (module.global_step + 1) % every == 0:
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
        weights = {"task": self.task_weight, **{name: loss.weight_now for name, loss in self.distiller.named_losses()}}
        total = means.get("loss") or 1.0
        return [
            (name, weights[name], mean, weights[name] * mean / total) for name, mean in means.items() if name in weights
        ]

    def evaluate(self, batch: Any, record: Record, target: Tensor | None) -> None:
        """Compare the student's recorded call with the teacher on one batch."""
        seen = self.distiller.run_teacher(batch, record)
        logits_of = self.distiller.hooks.logits_of
        teacher_logits = logits_of(seen.output) if seen.called else None
        self.comparison.update(logits_of(record.output), teacher_logits, target)

    def log_evaluation(self, module: LightningModule, prefix: str, *, with_student: bool) -> None:
        """Log what the comparison of this evaluation gave; the teacher's accuracy only the first time in a fit."""
        self.results = self.comparison.compute()
        self.comparison.reset()
        values = {f"{prefix}/{name}": value for name, value in self.results.items()}
        if not with_student:
            values.pop(f"{prefix}/accuracy", None)
        if prefix == "val" and not module.trainer.sanity_checking:
            if self.teacher_accuracy is not None:
                values.pop("val/teacher_accuracy", None)
            self.teacher_accuracy = self.results.get("teacher_accuracy", self.teacher_accuracy)
        if not module.trainer.barebones:
            module.log_dict(values, prog_bar=True, sync_dist=True)

    def save(self, checkpoint: dict[str, Any]) -> None:
        """Write sizes and random state into a checkpoint, as plain data."""
        shapes = self.distiller.shapes
        plain = None if shapes is None else {r: {n: list(s) for n, s in of.items()} for r, of in shapes.items()}
        checkpoint[CHECKPOINT_KEY] = {
            "shapes": plain,
            "layers": {
                name: {"student": loss.student, "teacher": loss.teacher}
                for name, loss in self.distiller.named_losses()
                if loss.reads != "logits" and not loss.awaits_layers
            },
            "random_state": random_state.collect(),
        }

    def load(self, checkpoint: Mapping[str, Any]) -> None:
        """Build the losses for a checkpoint's sizes, and remember its random state for the start of the fit.

        Raises:
            ValueError: If the checkpoint's student is of another architecture.
        """
        saved = checkpoint.get(CHECKPOINT_KEY)
        if saved is None:
            return
        self._random_state = saved["random_state"]
        if saved["shapes"] is not None and self.distiller.shapes is None:
            self.distiller.name_layers(saved["layers"])
            shapes: Shapes = {r: {n: tuple(s) for n, s in of.items()} for r, of in saved["shapes"].items()}
            self.distiller.build(shapes)

    def _write(self, module: LightningModule, means: Mapping[str, float], step: int) -> None:
        line = {f"train/{name}": value for name, value in means.items()}
        for logger in module.loggers:
            logger.log_metrics({**line, "epoch": module.current_epoch}, step=step)


def probe_batch(trainer: Trainer, module: LightningModule) -> Any:
    """Make one small batch of the training data on the student's side, without starting workers or samplers.

    Args:
        trainer: The Trainer, during ``setup`` of a fit.
        module: The module; its batch-transfer hooks, or the data module's, are applied.
    """
    with isolate_rng():
        if trainer.datamodule is not None:  # type: ignore[attr-defined]
            loader = trainer.datamodule.train_dataloader()  # type: ignore[attr-defined]
        else:
            loader = trainer.fit_loop._data_source.dataloader()
        batch = _first_samples(loader) if isinstance(loader, DataLoader) else None
        if batch is None:
            batch, _, _ = next(iter(CombinedLoader(loader, "max_size_cycle")))
        return module._apply_batch_transfer_handler(batch, device=device_of(module))


def check_same_architecture(saved: Mapping[str, Any], own: Mapping[str, Tensor], prefix: str, what: str) -> None:
    """Raise a ``ValueError`` in the user's words if a checkpoint's weights do not fit.

    Args:
        saved: State dict of the checkpoint.
        own: State dict of the module.
        prefix: What the keys to compare begin with.
        what: What these weights belong to, for the message.
    """
    theirs = {name: tuple(value.shape) for name, value in saved.items() if name.startswith(prefix)}
    ours = {name: tuple(value.shape) for name, value in own.items() if name.startswith(prefix)}
    if theirs == ours:
        return
    differ = [
        f"{name}: {theirs.get(name, 'absent')} in the checkpoint, {ours.get(name, 'absent')} here"
        for name in [*ours, *(n for n in theirs if n not in ours)]
        if theirs.get(name) != ours.get(name)
    ]
    raise ValueError(
        f"The checkpoint is of another {what} architecture; {len(differ)} tensor(s) differ, first "
        f"{'; '.join(differ[:3])}. Build the {what} that the checkpoint was made with; nothing has been loaded."
    )


def _first_samples(loader: DataLoader[Any]) -> Any:
    if isinstance(loader.dataset, IterableDataset) or loader.batch_sampler is None:
        return None
    try:
        samples = [loader.dataset[i] for i in range(2)]
    except (IndexError, KeyError, TypeError):
        return None
    return loader.collate_fn(samples)
