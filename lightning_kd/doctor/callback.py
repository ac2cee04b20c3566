"""Warns at the start of a fit of a teacher that has nothing to teach."""

from lightning.pytorch import LightningModule, Trainer
from lightning_utilities.core.rank_zero import rank_zero_warn

from lightning_kd.doctor.examination import Examination
from lightning_kd.fit.find import find_runs
from lightning_kd.fit.hooks import SkippedInBatches


class Doctor(SkippedInBatches):
    """Look at the first steps of a fit, and warn of what keeps a student from learning, with what to do.

    It warns of a teacher that is near chance on the student's own batches, that gives one answer to everything, that
    was never trained, or whose classes stand in another order than the student's. It looks at what the steps compute
    anyway: no network is called, no batch is read and no random number is drawn for it, so the fit is the same bit for
    bit. A small number of rows says little: the accuracy is tested by the exact binomial distribution, and a teacher
    that is better than a guess is warned of in one fit of a thousand at most.

    The command line has one of its own (``--doctor.batches``). ``lightning-kd check`` looks at more, without a fit. A
    teacher that is made of the student, a run that is resumed, and ``fast_dev_run`` are left alone. Of several
    processes the first one looks at its own rows.

    Args:
        batches: How many batches to look at, >= 0; 0 switches it off.

    Raises:
        ValueError: If ``batches`` is negative.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[Doctor(batches=8)], accelerator="cpu", logger=False)
    """

    def __init__(self, batches: int = 16) -> None:
        if batches < 0:
            raise ValueError(f"Doctor: expected batches >= 0, got {batches}.")
        self.batches = batches
        self._waiting: list[tuple[str, Examination]] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to look."""
        self._waiting = []
        if not self.batches or trainer.fast_dev_run or trainer.global_step:  # type: ignore[attr-defined]
            return
        for name, run in find_runs(trainer, pl_module).items():
            teacher = run.teacher
            if teacher is None or run.clock.source is not None or teacher.changes_over_time:
                continue
            examination = Examination(run, self.batches, self._tell)
            self._waiting.append((name, examination))
            run.lines.readers.append(examination.look)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say what fewer batches have shown."""
        for _, examination in list(self._waiting):
            self._tell(examination)

    def _tell(self, examination: Examination) -> None:
        told = {one: name for name, one in self._waiting}
        self._waiting = [(name, one) for name, one in self._waiting if one is not examination]
        readers = examination.run.lines.readers
        if examination.look in readers:
            readers.remove(examination.look)
        of = f"Student {told[examination]!r}: " if told.get(examination) else ""
        for finding in examination.findings():
            rank_zero_warn(f"{of}{finding} `lightning-kd check` looks closer; Doctor(batches=0) looks no more.")
