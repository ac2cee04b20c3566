"""What Lightning leaves open when a fit goes on from a checkpoint: the end of a batch or an epoch, and the data."""

import warnings
from typing import Any

from lightning.fabric.utilities.data import _set_sampler_epoch
from lightning.fabric.utilities.types import _Stateful
from lightning.pytorch import Trainer
from lightning.pytorch.loops import evaluation_loop, training_epoch_loop
from lightning.pytorch.loops.fetchers import _DataLoaderIterDataFetcher
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils.data import RandomSampler

from lightning_kd.fit.patches import Patches


def continue_loops(trainer: Trainer, patches: Patches) -> bool:
    """Let the Trainer go on where the checkpoint was written; called in ``on_train_start``, before the first batch.

    Lightning forgets what was due after the batch with which a checkpoint was written: a validation, and after the
    last batch of an epoch the hooks of its end. It forgets the step of a schedule that waits for a metric, both after
    the hooks of an epoch's end and in an epoch in which a run is resumed. If the run ends by ``max_steps`` it comes to
    the end of a finished epoch once more. It counts the epochs up to the next new loaders from there on. And it begins
    the data of an epoch before the hooks of its start, not after.

    Args:
        trainer: The Trainer, whose ``callback_metrics`` are those that the interrupted run had.
        patches: Where the replacement of a method of the Trainer's is remembered.

    Returns:
        Whether the run goes on within an epoch.
    """
    fit: Any = trainer.fit_loop
    every = _epochs_of_loaders(trainer)
    if every:
        due = trainer.current_epoch - trainer.current_epoch % every
        # what was asked for in an epoch that has ended since is asked for anew
        is_older = fit._last_train_dl_reload_epoch < due
        fit._last_train_dl_reload_epoch = due - every if is_older else due
    if fit.resumed_on_epoch_end:  # which Lightning has counted as completed
        fit.epoch_progress.current.completed -= 1
        fit.epoch_loop.update_lr_schedulers("epoch", update_plateau_schedulers=True)
        fit.epoch_progress.current.completed += 1
    elif fit.restarted_on_epoch_end:
        fit.epoch_loop.update_lr_schedulers("epoch", update_plateau_schedulers=True)
        fit.epoch_progress.increment_completed()
        fit.reset_restart_stage()
        for loop in (fit, fit.epoch_loop, fit.epoch_loop.val_loop):
            loop._restarting = False
    if not fit.restarted_mid_epoch:
        fit._resuming_from_checkpoint = False  # so that the data of the epoch is begun in its place
        return False
    fit._restarting = False  # only says that schedules must not ask for a metric
    if fit.epoch_loop.restarted_on_train_batch_end:
        _end_batch(fit, patches)
    return True


def skip_seen_batches(trainer: Trainer, patches: Patches, *, anew: bool) -> None:
    """Pass over the batches of the epoch that the interrupted run has had, unless the data finds its place itself.

    The random state must be that with which the interrupted run has begun the epoch's data.

    Args:
        trainer: The Trainer.
        patches: Where the replacement of a method of the Trainer's is remembered.
        anew: Whether to begin the data; otherwise the Trainer has just begun it with that random state.
    """
    fit: Any = trainer.fit_loop
    fetcher: Any = fit._data_fetcher
    done = fit.epoch_loop.batch_progress.current.processed  # a batch that an exception broke off is not among them
    if done >= trainer.num_training_batches or isinstance(fetcher, _DataLoaderIterDataFetcher):
        return
    _reset_without_warning(fit.epoch_loop, patches)
    if _finds_its_place(fetcher.combined_loader.flattened):
        return
    if fetcher.combined_loader._mode == "max_size_cycle":
        _tell_of_shorter(fetcher.combined_loader.flattened, done)
    if anew:
        for loader in fetcher.combined_loader.flattened:  # which Lightning does later, when the epoch begins
            _set_sampler_epoch(loader, fit.epoch_progress.current.processed)
        iter(fetcher)
    for _ in range(done):
        next(fetcher)
    fetcher.fetched -= done  # Lightning adds them


def begins_with_new_loaders(trainer: Trainer) -> bool:
    """Whether the uninterrupted run would ask for new loaders at the beginning of the epoch that is due now."""
    every = _epochs_of_loaders(trainer)
    return every > 0 and trainer.current_epoch % every == 0


def unfinished_gradients(trainer: Trainer) -> dict[str, Tensor]:
    """Return this process's gradients by name if more batches are to be added to them before the optimizer steps."""
    if not trainer.fit_loop._should_accumulate():
        return {}
    named = trainer.lightning_module.named_parameters()
    gradients = {name: p.grad.detach() for name, p in named if p.grad is not None}
    if any(isinstance(gradient, DTensor) for gradient in gradients.values()):
        rank_zero_warn(
            "This checkpoint is written between two batches whose gradients are accumulated, and sharded gradients are "
            "not kept in it; a run that goes on from it will step with those of the later batches only. Write "
            "checkpoints after optimizer steps: ModelCheckpoint(every_n_train_steps=...)."
        )
        return {}
    return {name: gradient.cpu() for name, gradient in gradients.items()}


def _epochs_of_loaders(trainer: Trainer) -> int:
    """Return after how many epochs the Trainer asks for new loaders, 0 for never."""
    return int(getattr(trainer, "reload_dataloaders_every_n_epochs", 0))


def _reset_without_warning(epoch_loop: Any, patches: Patches) -> None:
    """Keep Lightning 2.6 from warning of a loader that is not resumable: the batches that it has given are skipped."""
    reset = epoch_loop.reset

    def reset_silently() -> None:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "You're resuming from a checkpoint that ended before the epoch ended")
            reset()

    patches.once(epoch_loop, "reset", reset_silently)


def _finds_its_place(loaders: list[Any]) -> bool:
    samplers = [getattr(getattr(loader, "batch_sampler", None), "sampler", None) for loader in loaders]
    by_sampler = any(getattr(sampler, "finds_its_place", False) for sampler in samplers)
    return by_sampler or all(isinstance(loader, _Stateful) for loader in loaders)


def _tell_of_shorter(loaders: list[Any], done: int) -> None:
    """Say that a loader that began anew within the epoch has drawn its order then, which the checkpoint cannot tell."""
    drawn = [one for one in loaders if isinstance(getattr(one, "sampler", None), RandomSampler)]
    without = [one for one in drawn if one.generator is None and one.sampler.generator is None]
    if len(loaders) > 1 and any(len(one) < done for one in without):
        rank_zero_warn(
            "The shorter of the training loaders had begun anew within the epoch in which this fit goes on, in an "
            "order that was drawn then. So it may read other rows than the interrupted fit would have until the next "
            "epoch. Give it a generator of its own: DataLoader(..., generator=torch.Generator())."
        )


def _end_batch(fit: Any, patches: Patches) -> None:
    """Make the epoch loop begin with what comes after its last batch."""
    epoch, validation = fit.epoch_loop, fit.epoch_loop.val_loop
    if epoch.batch_progress.is_last_batch:  # Lightning has counted the epoch as ended
        for counts in (fit.epoch_progress.total, fit.epoch_progress.current):
            counts.processed -= 1
            counts.completed -= 1
    epoch.batch_progress.increment_completed()
    epoch._restart_stage = training_epoch_loop.RestartStage.RESTARTED_ON_LAST
    if epoch._should_check_val_fx(fit._data_fetcher):
        validation.batch_progress.current.reset()
        validation._restart_stage = evaluation_loop.RestartStage.RESTARTED_MID_EVALUATION
    else:
        # Lightning 2.6 asks again after a batch that it has validated before: the next question is answered with yes
        patches.once(epoch, "_should_check_val_fx", lambda _: True)
