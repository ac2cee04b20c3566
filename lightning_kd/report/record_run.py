"""The callback that records a run, so that a page can be made of it when the run is over."""

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning_utilities.core.rank_zero import rank_zero_info

from lightning_kd.fit.find import find_runs
from lightning_kd.report.page import check_extra
from lightning_kd.report.record import Record
from lightning_kd.report.recorder import Recorder


class RecordRun(Callback):
    """Record a fit, for ``lightning-kd report``.

    The record has the parts of the loss and their weights over time, what each validation gave, the gradient of each
    part on the first batch of an epoch, and at the end, of the last validation: what both networks said, the images on
    which they differ most, what both cost, and how alike their layers are. It is written at the end of each epoch. The
    trained weights are the same with it and without it, bit for bit.

    It works with a ``DistillationModule`` and with a ``DistillationCallback``. Of several students each has a folder of
    its own. With several processes the first one's part of the data is recorded.

    Args:
        output: The folder of the record. An older record in it is replaced, unless the fit goes on from a checkpoint.
        page: Whether to write the page too when the fit ends, as ``report.html`` in this folder.
        points: How many points each curve has; longer ones are thinned.
        rows: How many rows of the validation data are recorded, > 0.
        pictures: How many images are recorded.
        class_names: The names of the classes; by default ``classes`` of the validation data set, if it has them.

    Raises:
        ValueError: If ``points`` or ``rows`` is not positive.
        ModuleNotFoundError: If a page is asked for and its packages are not installed; names the extra.

    Example:
        >>> callback = RecordRun("runs/first")
        >>> trainer = Trainer(callbacks=[callback], logger=False)
    """

    def __init__(
        self,
        output: str | os.PathLike[str],
        page: bool = False,
        points: int = 1000,
        rows: int = 4096,
        pictures: int = 12,
        class_names: list[str] | None = None,
    ) -> None:
        if points < 2 or rows < 1 or pictures < 0:
            raise ValueError(
                f"RecordRun: expected points > 1, rows > 0 and pictures >= 0, got {points}, {rows} and {pictures}."
            )
        if page:
            check_extra()
        self.output = Path(output)
        self.page = page
        self.points, self.rows, self.pictures = points, rows, pictures
        self.class_names = class_names
        self._recorders: dict[str, Recorder] = {}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check that there is something to record.

        Raises:
            ValueError: If the fit is no distillation.
        """
        if not find_runs(trainer, pl_module):
            raise ValueError(
                "RecordRun records distillations, and this fit is none; train a DistillationModule, or add a "
                "DistillationCallback."
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to record."""
        self._stop()
        for name, run in find_runs(trainer, pl_module).items():
            recorder = Recorder(
                run, points=self.points, rows=self.rows, pictures=self.pictures, class_names=self.class_names
            )
            recorder.start(trainer, self._earlier(name))
            self._recorders[name] = recorder

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at the gradients of the next step."""
        for recorder in self._recorders.values():
            recorder.start_epoch(trainer.current_epoch)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write what is known so far."""
        self._write(trainer, finished=False)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to keep what the networks say."""
        if not trainer.sanity_checking:
            for recorder in self._recorders.values():
                recorder.start_evaluation()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep what the validation gave."""
        if not trainer.sanity_checking:
            for recorder in self._recorders.values():
                recorder.end_evaluation(trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure what needs the networks, and write the whole record."""
        if trainer.is_global_zero:
            for recorder in self._recorders.values():
                recorder.measure(trainer)
        self._write(trainer, finished=True)
        if self.page and trainer.is_global_zero:
            from lightning_kd.report.html import write_page

            for name in self._recorders:
                write_page(self._folder(name), self._folder(name) / "report.html")
                rank_zero_info(f"The report is in {str(self._folder(name) / 'report.html')!r}.")
        self._stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Write what is known when a fit is broken off."""
        with suppress(Exception):  # the error that ended the fit is the one to tell
            self._write(trainer, finished=False)
        self._stop()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Look no more."""
        self._stop()

    def _stop(self) -> None:
        for recorder in self._recorders.values():
            recorder.stop()
        self._recorders = {}

    def _write(self, trainer: Trainer, *, finished: bool) -> None:
        for name, recorder in self._recorders.items():
            record = recorder.record(trainer, finished=finished)
            if trainer.is_global_zero:
                record.write(self._folder(name))

    def _earlier(self, name: str) -> Record | None:
        with suppress(OSError, ValueError, KeyError):
            return Record.read(self._folder(name))
        return None

    def _folder(self, name: str) -> Path:
        return self.output / name if name else self.output

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what belongs to a fit, where a Trainer with this callback is copied."""
        return vars(self) | {"_recorders": {}}
