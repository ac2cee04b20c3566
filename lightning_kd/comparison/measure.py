"""What an arm costs: the time of a step, the peak of memory, and how far it has come."""

import json
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

_STATUS = Path("/proc/self/status")


class Measure(Callback):
    """Measure the steps of a fit, and write down how far it has come.

    Args:
        progress: File that says the fraction of the fit that is done, 0..1, in JSON; written at most once a second.
        stop_after: Epochs after which the fit ends, whatever the Trainer's ``max_epochs``.
    """

    def __init__(self, progress: Path | None = None, stop_after: int | None = None) -> None:
        self.progress = progress
        self.stop_after = stop_after
        self._epochs: list[float] = []
        self._first: float | None = None
        self._steps = 0
        self._written = 0.0

    @property
    def step_time(self) -> float | None:
        """Seconds of a step with its data, the median over epochs; without the first step of each."""
        return median(self._epochs) if self._epochs else None

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Expect the first step of an epoch."""
        self._first, self._steps = None, 0

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Count a step."""
        now = time.perf_counter()
        if self._first is None:
            self._first = now
        else:
            self._steps += 1
        if self.progress is not None and now - self._written > 1:
            self._written = now
            self.progress.write_text(json.dumps(_done(trainer)))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the time of an epoch's steps, and end a fit that is to be short."""
        if self._first is not None and self._steps:
            if torch.cuda.is_initialized():
                torch.cuda.synchronize()
            self._epochs.append((time.perf_counter() - self._first) / self._steps)
        if self.stop_after is not None and trainer.current_epoch + 1 >= self.stop_after:
            trainer.should_stop = True


def _done(trainer: Trainer) -> float:
    epochs, steps = trainer.max_epochs or -1, trainer.max_steps
    of_steps = trainer.global_step / steps if steps > 0 else 0.0
    batches = trainer.num_training_batches
    within = (trainer.fit_loop.epoch_loop.batch_progress.current.completed / batches) if batches else 0.0
    of_epochs = (trainer.current_epoch + min(within, 1.0)) / epochs if epochs > 0 else 0.0
    return min(1.0, max(of_steps, of_epochs))


def peak_memory() -> int | None:
    """Return the most memory that this process has held, in bytes: of the GPU if it uses one, else of the system.

    Returns:
        ``None`` if the system does not tell.
    """
    if torch.cuda.is_initialized():
        return int(torch.cuda.max_memory_allocated())
    try:
        # of this program alone; what getrusage tells includes the program that started it
        lines = _STATUS.read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        pass
    try:
        import resource
    except ImportError:
        return None
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else 1024 * used
