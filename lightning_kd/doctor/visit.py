"""The first steps of a fit up to the gradient, without a step of the optimizer, and what they show."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer

from lightning_kd.capture.networks import num_parameters
from lightning_kd.doctor.examination import Examination
from lightning_kd.doctor.findings import Finding
from lightning_kd.doctor.inputs import InputWatch
from lightning_kd.doctor.networks import finding_of_sizes
from lightning_kd.doctor.one_batch import finding_of_capacity, learn_one_batch
from lightning_kd.doctor.parts import Part, PartsWatch, findings_of
from lightning_kd.fit.run import DistillationRun


@dataclass
class Report:
    """What a visit has shown.

    Args:
        sizes: Numbers of parameters of student and teacher.
        rows: How many samples were looked at.
        accuracies: Of student and teacher, before the fit, each as rows that are right and all rows.
        entropies: The teacher's entropy at each temperature, as a share of the largest there is.
        parts: The parts of the loss.
        by_heart: What the student gets right of one batch after training on it alone, and how many it is.
        findings: What is wrong, or may be.
    """

    sizes: tuple[int, int | None]
    rows: int = 0
    accuracies: dict[str, tuple[int, int]] = field(default_factory=dict)
    entropies: dict[float, float] = field(default_factory=dict)
    parts: list[Part] = field(default_factory=list)
    by_heart: tuple[int, int] | None = None
    findings: list[Finding] = field(default_factory=list)


class _EnoughError(Exception):
    """Ends the fit once everything was seen."""


class _Visit(Callback):
    """Looks at the first batches, and ends the fit before its optimizer steps."""

    def __init__(self, run: DistillationRun, batches: int, fit_steps: int) -> None:
        self.run = run
        self.examination = Examination(run, batches)
        self.watch = PartsWatch(run)
        self.inputs = InputWatch(None if run.teacher is None else run.teacher.layered)
        self.batches = batches
        self.fit_steps = fit_steps
        self.by_heart: tuple[int, int] | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.run.lines.readers += [self.examination.look, self.watch.look]
        vars(pl_module)["training_step"] = partial(self._look, pl_module.training_step)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        raise _EnoughError

    def _look(self, step: Callable[[Any, int], Any], batch: Any, batch_idx: int) -> None:
        """Stand in for a training step, of which Lightning makes no step of the optimizer."""
        if batch_idx == 0:
            with self.run.step.apart():
                self.by_heart = learn_one_batch(self.run, self.run.step.hooks.unpack_batch(batch), self.fit_steps)
        step(batch, batch_idx)
        if batch_idx + 1 == self.batches:
            raise _EnoughError


def visit(
    run: DistillationRun,
    module: LightningModule,
    data: LightningDataModule,
    trainer: Trainer,
    *,
    batches: int,
    fit_steps: int,
) -> Report:
    """Set a fit up, and look at its first batches.

    Args:
        run: The run.
        module: Its module.
        data: The data.
        trainer: A Trainer of one device.
        batches: How many batches to look at.
        fit_steps: How many steps the student may learn one batch by heart; 0 for none.

    Raises:
        ValueError: If the fit is refused at set-up.
    """
    looker = _Visit(run, batches, fit_steps)
    mine = [one for one in trainer.callbacks if not type(one).__module__.startswith("lightning.")]  # type: ignore[attr-defined]
    trainer.callbacks = [*mine, looker]  # type: ignore[attr-defined]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`training_step` returned `None`")
        try:
            with looker.inputs:
                trainer.fit(module, datamodule=data)
        except _EnoughError:
            pass
        finally:
            vars(module).pop("training_step", None)
    return _report(run, looker)


def _report(run: DistillationRun, looker: _Visit) -> Report:
    seen = looker.examination
    teacher = None if run.teacher is None else run.teacher.layered
    report = Report((num_parameters(run.student), None if teacher is None else num_parameters(teacher)), seen.rows)
    for role, counts in (("teacher", seen.counts), ("student", seen.of_student)):
        if counts is not None:
            report.accuracies[role] = counts.accuracy()
    report.entropies, report.parts, report.by_heart = seen.entropies(), looker.watch.parts(), looker.by_heart
    of_scale = None if seen.counts is not None and seen.counts.know_the_labels else looker.inputs.finding()
    found = [*([] if of_scale is None else [of_scale]), *seen.findings(), *findings_of(report.parts)]
    found += [_of_entropy(temperature, share) for temperature, share in report.entropies.items() if share < 0.01]
    if teacher is not None and (of_sizes := finding_of_sizes(run.student, teacher)) is not None:
        found.append(of_sizes)
    if looker.by_heart is not None:
        capacity = finding_of_capacity(*looker.by_heart, looker.fit_steps)
        found += [] if capacity is None else [capacity]
    report.findings = sorted(found, key=lambda finding: not finding.is_sure)
    return report


def _of_entropy(temperature: float, share: float) -> Finding:
    return Finding(
        "entropy",
        f"At temperature {temperature:g} the teacher's probabilities have {share:.2%} of the largest entropy: they "
        "tell little more than labels do.",
        f"Raise the temperature, such as to {max(4.0, 2 * temperature):g}, or use a loss of features.",
        is_sure=False,
    )
