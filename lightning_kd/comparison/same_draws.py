"""The same random draws in every arm: the order of the rows, augmentations and dropout do not depend on the losses."""

import hashlib
import random
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer


class SameDraws(Callback):
    """Begin the random numbers anew at each batch, from the seed and the number of the batch alone.

    Losses draw numbers too: projectors at set-up, negatives in each step. Without this callback another loss would
    show the student other rows, in another order. With it two fits of the same seed and data see the same batches, and
    their difference is that of the losses.

    Args:
        seed: Where the numbers begin.
        threads: Threads that torch computes with during the fit, since sums in another order have other last digits;
            ``None`` leaves them as they are.

    Example:
        >>> draws = SameDraws(seed=1)
        >>> draws.begin(7)
        >>> first = torch.rand(1)
        >>> draws.begin(7)
        >>> bool(first == torch.rand(1)), bool(first == torch.rand(1))
        (True, False)
    """

    def __init__(self, seed: int = 0, threads: int | None = None) -> None:
        self.seed = seed
        self.threads = threads
        self._batches = 0
        self._before: int | None = None

    def begin(self, batch: int) -> None:
        """Begin the numbers of a batch, counted over the whole fit from 0."""
        digest = hashlib.sha256(f"{self.seed}/{batch}".encode()).digest()
        # torch 2.13 keeps every seed for devices that are not there, each with the text of the whole stack: 2 ms a call
        generators = torch if torch.accelerator.is_available() else torch.default_generator
        generators.manual_seed(int.from_bytes(digest[:8], "big") >> 1)
        random.seed(digest)
        np.random.seed(int.from_bytes(digest[8:12], "big"))

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Set the number of threads, and begin before the data is asked for."""
        self._batches = 0
        if self.threads is not None and self._before is None:
            self._before = torch.get_num_threads()
            torch.set_num_threads(self.threads)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin before the loaders draw the order of the first epoch."""
        self.begin(0)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin anew: the held-out data may have been looked at."""
        self.begin(0)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin before the order of an epoch is drawn."""
        self.begin(self._batches)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Begin before the next batch is augmented."""
        self._batches += 1
        self.begin(self._batches)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin anew: an evaluation in the middle of an epoch has drawn numbers."""
        self.begin(self._batches)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Set the number of threads that there was before."""
        if self._before is not None:
            torch.set_num_threads(self._before)
            self._before = None

    def state_dict(self) -> dict[str, Any]:
        """Return how many batches there were."""
        return {"batches": self._batches}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting where a checkpoint was written."""
        self._batches = state_dict["batches"]
