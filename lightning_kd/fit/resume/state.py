"""What a checkpoint holds beside weights, and how a fit goes on from it."""

from collections.abc import Iterator, Mapping
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor

from lightning_kd.distributed.whole_state import is_sharded
from lightning_kd.engine.setup import SetUp
from lightning_kd.files.checkpoint import CHECKPOINT_KEY
from lightning_kd.fit.as_it_was import AsItWas
from lightning_kd.fit.evaluation import Evaluation
from lightning_kd.fit.lines import Lines
from lightning_kd.fit.patches import Patches
from lightning_kd.fit.resume import processes, random_state
from lightning_kd.fit.resume.generators import KEY, DataGenerators
from lightning_kd.fit.resume.loops import (
    begins_with_new_loaders,
    continue_loops,
    skip_seen_batches,
    unfinished_gradients,
)
from lightning_kd.fit.resume.made_of import differences, made_of, of_older
from lightning_kd.losses.base import DistillationLoss
from lightning_kd.losses.samples.crd_split import check_saved


class ResumeState:
    """Writes and reads what resuming needs; a resumed fit ends as the uninterrupted one, bit for bit on the CPU.

    Args:
        setup: What the losses were built for.
        lines: What is written of each step.
        evaluation: What the evaluations gave.
        patches: Where replacements of Lightning's methods are remembered.
        as_it_was: What the teacher was at set-up.
    """

    def __init__(
        self, setup: SetUp, lines: Lines, evaluation: Evaluation, patches: Patches, as_it_was: AsItWas
    ) -> None:
        self.setup = setup
        self.as_it_was = as_it_was
        self.lines = lines
        self.evaluation = evaluation
        self.patches = patches
        self._processes: list[dict[str, Any]] = []
        self._data_start: dict[str, Any] = {}
        self._of_data = DataGenerators()
        self._compared = False
        self.leads = True
        """Whether it moves the Trainer's loops and random state: of several students, the first one's does."""

    def begin(self, trainer: Trainer) -> None:
        """Forget what an earlier checkpoint has left: this fit does not go on from it unless it is loaded again."""
        self._processes = []
        if self.leads:
            self._of_data.join(trainer, self.patches, lambda: processes.mine(self._processes))
        self._compared = False
        self.evaluation.teacher_accuracy = None

    def fit_start(self) -> None:
        """Note the random state with which the Trainer is about to begin the data."""
        saved = processes.mine(self._processes)
        if saved is not None:
            random_state.restore(saved["data_start"])
        self._data_start = random_state.current()

    def train_start(self, module: LightningModule) -> None:
        """Let a resumed fit go on exactly where its checkpoint was written: in the loops, the data, at random."""
        saved = self._take_up_process()
        if saved is None:
            return
        trainer = module.trainer
        self.lines.log.restore(saved["log"])
        for name, buffer in self._local_memory():
            buffer.copy_(saved["memory"][name])
        self._data_start = saved["data_start"]
        if not self.leads:
            return
        trainer.callback_metrics.update(saved["metrics"])
        within_epoch = continue_loops(trainer, self.patches)
        data_goes_on = self._of_data.can_go_on(saved, trainer.current_epoch)
        if within_epoch:
            anew = trainer.current_epoch > 0 or trainer.strategy.restore_checkpoint_after_setup
            if anew:
                random_state.restore(self._data_start)
                if data_goes_on:
                    self._of_data.begin_again(saved)
            skip_seen_batches(trainer, self.patches, anew=anew)
        if data_goes_on and (within_epoch or not begins_with_new_loaders(trainer)):
            self._of_data.go_on(saved)
        random_state.restore(saved["random_state"])
        for name, parameter in trainer.lightning_module.named_parameters():
            if name in saved["gradients"]:
                parameter.grad = saved["gradients"][name].to(parameter.device)

    def epoch_start(self, module: LightningModule) -> None:
        """Remember the random state with which the data of an epoch is begun; that of the first was noted before."""
        if module.current_epoch > 0:
            self._data_start = random_state.current()
        self._of_data.epoch_start(module.current_epoch)

    def save(self, trainer: Trainer, checkpoint: dict[str, Any], *, tuning: bool) -> None:
        """Write into a checkpoint, as plain data, what resuming needs beside weights; every process must call this.

        Lines that were written before go to disk too: a resumed run does not write them again.
        """
        for logger in trainer.loggers:
            logger.save()
        checkpoint[CHECKPOINT_KEY] = {
            **self.setup.state(),
            "made_of": self._made_of(),
            "stages": [[stage.length, stage.unit] for stage in self.setup.step.objective.stages],
            "teacher_accuracy": self.evaluation.teacher_accuracy,
            "processes": processes.gather(self._process_state(trainer, tuning)),
        }

    def load(self, checkpoint: Mapping[str, Any], trainer: Trainer | None = None) -> None:
        """Build the losses for a checkpoint's sizes, and remember the rest for the fit that goes on from it.

        A later fit that does not go on from it forgets the rest in :meth:`begin`.

        Args:
            checkpoint: The checkpoint.
            trainer: The Trainer that goes on from it, ``None`` without one.

        Raises:
            ValueError: If the checkpoint's losses or data are others, with which a fit cannot go on.
        """
        saved = checkpoint.get(CHECKPOINT_KEY)
        if saved is None:
            return
        self._processes = saved["processes"]
        self.evaluation.teacher_accuracy = saved["teacher_accuracy"]
        objective = self.setup.step.objective
        # with other losses the stages are others too; the comparison below tells the user that the losses differ
        if len(objective.stages) == len(saved["stages"]):
            for stage, (length, unit) in zip(objective.stages, saved["stages"], strict=True):
                stage.length, stage.unit = length, unit
        objective.forget_goals()
        self.setup.restore(saved)
        if trainer is not None and trainer.state.fn == TrainerFn.FITTING and not self._compared:
            self._compared = True
            self._compare(checkpoint, saved)

    def _made_of(self) -> dict[str, Any]:
        step = self.setup.step
        account = made_of(step.objective, step.teacher, self.as_it_was.number, getattr(step.hooks, "task_loss", None))
        return {**account, "outputs": step.hooks.plain_output_options()}

    def _compare(self, checkpoint: Mapping[str, Any], saved: Mapping[str, Any]) -> None:
        """Say in what the checkpoint differs from this fit.

        Raises:
            ValueError: If weights or memories of the losses are of other layers or losses, or do not fit.
        """
        now = self._made_of()
        found, others = differences(saved.get("made_of") or of_older(saved, now), now)
        losses = self.setup.step.objective.losses
        if not is_sharded(losses):
            own, kept = losses.state_dict(), _state_of_losses(checkpoint, saved)
            check_saved(own, kept)
            owners = {name.partition(".")[0] for name in (*own, *kept)}
            same = {name: tuple(t.shape) for name, t in own.items()} == {n: tuple(t.shape) for n, t in kept.items()}
            if not same or any(name.partition(".")[0] in owners for name in others):
                what = "; ".join(found) or "their weights have other shapes"
                raise ValueError(
                    f"A fit cannot go on from this checkpoint with other losses, whose weights or memories it does not "
                    f"hold: {what}. Fit with what the checkpoint was made with, or begin a new fit, without ckpt_path, "
                    "of its student (lightning_kd.teachers.from_checkpoint reads it)."
                )
        if found:
            rank_zero_warn(
                f"This fit goes on from a checkpoint that was made with something else: {'; '.join(found)}. It goes on "
                "with what is given now. If that is not meant, fit with what the checkpoint was made with."
            )

    def _take_up_process(self) -> dict[str, Any] | None:
        states, self._processes = self._processes, []
        saved = processes.mine(states)
        if states and saved is None:
            rank_zero_warn(
                f"The checkpoint was written by {len(states)} process(es); another number of them goes on from it, so "
                "random numbers are drawn afresh, and the next log line tells the steps from here on only."
            )
        return saved

    def _process_state(self, trainer: Trainer, tuning: bool) -> dict[str, Any]:
        return {
            "random_state": random_state.current(),
            "data_start": random_state.current() if tuning else self._data_start,
            KEY: self._of_data.state(tuning=tuning),
            "log": self.lines.log.state(),
            "metrics": {name: value.detach().cpu() for name, value in trainer.callback_metrics.items()},
            "gradients": unfinished_gradients(trainer) if self.leads else {},
            "memory": {name: buffer.detach().cpu() for name, buffer in self._local_memory()},
        }

    def _local_memory(self) -> Iterator[tuple[str, Tensor]]:
        """Yield what the losses remember in this process alone."""
        for path, loss in self.setup.step.objective.losses.named_modules():
            if isinstance(loss, DistillationLoss):
                yield from ((f"{path}.{name}", loss.get_buffer(name)) for name in loss.local_buffers)


def _state_of_losses(checkpoint: Mapping[str, Any], saved: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return what the losses have learned: the callback keeps it by itself, the module in its own state."""
    if "losses" in saved:
        return dict(saved["losses"])
    state = checkpoint.get("state_dict", {})
    return {name.removeprefix("losses."): value for name, value in state.items() if name.startswith("losses.")}
