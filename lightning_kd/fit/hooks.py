"""The hooks that a distillation needs of Lightning, in one callback for both doors.

A user's subclass may override any hook of its LightningModule without ``super()``, since Lightning's own are empty. So
nothing of the distillation hangs on the module's hooks.
"""

from collections.abc import Callable
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_kd.capture.columns import is_own
from lightning_kd.capture.networks import modes_of, put_in_modes
from lightning_kd.files.checkpoint import CHECKPOINT_KEY
from lightning_kd.fit.optimizers import optimized_parameters
from lightning_kd.fit.run import DistillationRun


class FitHooks(Callback):
    """Hands each moment of a fit on to a run."""

    _run: DistillationRun | None = None
    _evaluated = False

    @property
    def run(self) -> DistillationRun:
        """The run, once the Trainer has set this callback up."""
        if self._run is None:
            raise RuntimeError("The callback has no run yet; pass it to a Trainer and call fit.")
        return self._run

    def student_of(self, pl_module: LightningModule) -> nn.Module:
        """Return the module that is the student by now."""
        return self.run.student

    def find_again(self, pl_module: LightningModule) -> None:
        """Look whether layers were replaced after set-up, at moments between which nobody replaces any."""
        self.run.step.find_again(self.student_of(pl_module))

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take up a resumed run where it stopped."""
        self.find_again(pl_module)
        self.run.fit_start(pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take up a run that was stopped within an epoch."""
        self.find_again(pl_module)
        self.run.resume.train_start(pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin the epoch's means."""
        self.run.epoch_start(pl_module)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Give the losses the moment of the run."""
        if self._evaluated:
            self._evaluated = False
            put_in_modes(modes_of(pl_module))
        if batch_idx == 0:  # after all that hooks of the module may have replaced
            self.find_again(pl_module)
        self.run.gradients.forget()  # of an accumulated batch, whose tensors would take memory in this one
        self.run.clock.start_batch(pl_module, batch_idx)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Write a log line every ``log_every_n_steps``."""
        self.run.before_optimizer_step(pl_module, optimizer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the steps since the last line."""
        self.run.epoch_end(pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look whether the teacher is as it was."""
        self.run.train_end()

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to compare student and teacher."""
        self.find_again(pl_module)
        self.run.start_evaluation(pl_module)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep what the validation gave.

        Lightning 2.6 then sets the flags of the modes back, but does not call ``train``. The next step does so.
        """
        self._evaluated = True
        self.run.evaluation.end(pl_module, tuning=self.run.clock.tuning)

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to compare student and teacher."""
        self.find_again(pl_module)
        self.run.start_evaluation(pl_module)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep what the test gave."""
        self.run.evaluation.end(pl_module, tuning=self.run.clock.tuning)


class SkippedInBatches(Callback):
    """A callback that Lightning passes over in most hooks of a batch.

    Lightning 2.6 opens a block of its profiler around every hook of every callback in every batch, but passes over what
    is no function. A step of a millisecond would feel it.
    """

    on_train_batch_end = None  # type: ignore[assignment]
    on_before_zero_grad = None  # type: ignore[assignment]
    on_before_backward: Callable[[Trainer, LightningModule, Tensor], None] | None = None  # type: ignore[assignment]
    on_after_backward = None  # type: ignore[assignment]


class ModuleHooks(SkippedInBatches, FitHooks):
    """The hooks of a ``DistillationModule``, which puts them among the Trainer's callbacks at set-up.

    They stand after the user's callbacks and before those that write checkpoints: where Lightning calls the module.

    Args:
        run: The module's run.
        before_fit: Called as a fit starts, before the run is.
    """

    def __init__(self, run: DistillationRun, before_fit: Callable[[], None]) -> None:
        self._run = run
        self._before_fit = before_fit
        self._trains: set[str] = set()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin the epoch's means, and tell of weights that were thawed and are in no optimizer."""
        super().on_train_epoch_start(trainer, pl_module)
        trains = {name: weight for name, weight in self.run.student.named_parameters() if weight.requires_grad}
        taken = {id(weight) for one in trainer.optimizers for weight in optimized_parameters(one)}
        left = [name for name, weight in trains.items() if name not in self._trains and id(weight) not in taken]
        if left and self._trains:
            rank_zero_warn(
                "Weights of the student were frozen at set-up and train now, but are in no optimizer, so they stay as "
                f"they are: {left[0]!r}{f' and {len(left) - 1} more' if len(left) > 1 else ''}. Add them with "
                "optimizer.add_param_group, freeze them only after the optimizer is made, or use Lightning's "
                "BaseFinetuning."
            )
        self._trains |= trains.keys()

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Write a log line every ``log_every_n_steps``, and tell of a step of the user's that leaves the losses out."""
        if not self.run.used:
            self.run.used = True
            rank_zero_warn(
                f"{type(pl_module).__name__}.training_step made a step without the distillation losses. Add them by "
                "super().training_step(batch, batch_idx); of a step that is wholly your own, use DistillationCallback."
            )
        super().on_before_optimizer_step(trainer, pl_module, optimizer)

    def student_of(self, pl_module: LightningModule) -> nn.Module:
        """Return the module that is the student by now."""
        student = pl_module.student
        assert isinstance(student, nn.Module)
        return student

    def join(self, trainer: Trainer) -> None:
        """Stand among a Trainer's callbacks, in the place of hooks that an earlier fit has left there."""
        callbacks = _without_hooks_of(self.run, trainer)
        place = next((i for i, callback in enumerate(callbacks) if isinstance(callback, Checkpoint)), len(callbacks))
        # a new list: the Trainer may be going through the old one
        trainer.callbacks = [*callbacks[:place], self, *callbacks[place:]]  # type: ignore[attr-defined]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check that the losses' parameters are optimized, and take up a resumed run where it stopped."""
        self._before_fit()
        self._check_optimized(trainer)
        super().on_fit_start(trainer, pl_module)
        # a hook of every batch is there only for a training_step of a subclass, which may add terms
        self.on_before_backward = None if is_own(pl_module.training_step) else self._check_window

    def _check_window(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        self.run.window.check(loss)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add what resuming needs beside weights, also where the module overrides this hook."""
        self.run.save(trainer, checkpoint)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take up what resuming needs beside weights, also where the module overrides this hook."""
        self.run.load(checkpoint, trainer)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave student, teacher and Trainer as they were."""
        self._leave(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave student, teacher and Trainer as they were."""
        self._leave(trainer)

    def _leave(self, trainer: Trainer) -> None:
        self.run.leave()
        trainer.callbacks = _without_hooks_of(self.run, trainer)  # type: ignore[attr-defined]

    def _check_optimized(self, trainer: Trainer) -> None:
        known = {id(p) for optimizer in trainer.optimizers for p in optimized_parameters(optimizer)}
        task = getattr(self.run.step.hooks, "task_loss", None)  # such as ArcFace, which has weights
        parts = [self.run.objective.losses, *([task] if isinstance(task, nn.Module) else [])]
        named = [named for part in parts for named in part.named_parameters()]
        left_out = [name for name, p in named if p.requires_grad and id(p) not in known]
        if left_out and trainer.optimizers:
            raise MisconfigurationException(
                f"No optimizer has the parameters {left_out} of the losses, so they would not train. In your "
                "configure_optimizers give the optimizer self.trained_parameters(), which has them beside the "
                "student's; or set requires_grad to False where they shall not train."
            )


def already_saved(checkpoint: dict[str, Any]) -> bool:
    """Whether the hooks have written into a checkpoint what resuming needs."""
    return CHECKPOINT_KEY in checkpoint


def _without_hooks_of(run: DistillationRun, trainer: Trainer) -> list[Callback]:
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    return [c for c in callbacks if not (isinstance(c, ModuleHooks) and c.run is run)]
