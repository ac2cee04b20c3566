"""The first steps of a fit up to the gradient, without a step of the optimizer, and what they show."""

import warnings
from collections.abc import Callable, Collection, Mapping
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


class _Look:
    """Looks at the steps of one student.

    Args:
        run: The student's run.
        batches: How many batches to look at.
        fit_steps: How many steps the student may learn one batch by heart; 0 for none.
    """

    def __init__(self, run: DistillationRun, batches: int, fit_steps: int) -> None:
        self.run = run
        self.examination = Examination(run, batches)
        self.watch = PartsWatch(run)
        self.fit_steps = fit_steps
        self.by_heart: tuple[int, int] | None = None

    def begin(self) -> None:
        """Look at the terms of each step from now on."""
        self.run.lines.readers += [self.examination.look, self.watch.look]

    def learn(self, batch: Any) -> None:
        """Let a copy of the student learn a batch by heart."""
        with self.run.step.apart():
            self.by_heart = learn_one_batch(self.run, self.run.step.hooks.unpack_batch(batch), self.fit_steps)


class _Visit(Callback):
    """Has the first batches looked at, and ends the fit before its optimizer steps."""

    def __init__(self, looks: Collection[_Look], batches: int) -> None:
        self.looks = looks
        self.batches = batches

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for look in self.looks:
            look.begin()
        vars(pl_module)["training_step"] = partial(self._look, pl_module.training_step)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        raise _EnoughError

    def _look(self, step: Callable[[Any, int], Any], batch: Any, batch_idx: int) -> None:
        """Stand in for a training step, of which Lightning makes no step of the optimizer."""
        if batch_idx == 0:
            for look in self.looks:
                look.learn(batch)
        step(batch, batch_idx)
        if batch_idx + 1 == self.batches:
            raise _EnoughError


def visit(
    runs: Mapping[str, DistillationRun],
    module: LightningModule,
    data: LightningDataModule,
    trainer: Trainer,
    *,
    batches: int,
    fit_steps: int,
) -> dict[str, Report]:
    """Set a fit up, and look at its first batches.

    Args:
        runs: The runs to look at, by the student's name; of several students one or more.
        module: The module of the whole fit.
        data: The data.
        trainer: A Trainer of one device.
        batches: How many batches to look at.
        fit_steps: How many steps a student may learn one batch by heart; 0 for none.

    Returns:
        What was seen of each run, by the same names.

    Raises:
        ValueError: If the fit is refused at set-up.
    """
    looks = {name: _Look(run, batches, fit_steps) for name, run in runs.items()}
    teacher = next(iter(runs.values())).teacher  # which all students have in common
    inputs = InputWatch(None if teacher is None else teacher.layered)
    mine = [one for one in trainer.callbacks if not type(one).__module__.startswith("lightning.")]  # type: ignore[attr-defined]
    trainer.callbacks = [*mine, _Visit(looks.values(), batches)]  # type: ignore[attr-defined]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`training_step` returned `None`")
        try:
            with inputs:
                trainer.fit(module, datamodule=data)
        except _EnoughError:
            pass
        finally:
            vars(module).pop("training_step", None)
    return {name: _report(look, inputs) for name, look in looks.items()}


def _report(look: _Look, inputs: InputWatch) -> Report:
    run, seen = look.run, look.examination
    teacher = None if run.teacher is None else run.teacher.layered
    report = Report((num_parameters(run.student), None if teacher is None else num_parameters(teacher)), seen.rows)
    for role, counts in (("teacher", seen.counts), ("student", seen.of_student)):
        if counts is not None:
            report.accuracies[role] = counts.accuracy()
    report.entropies, report.parts, report.by_heart = seen.entropies(), look.watch.parts(), look.by_heart
    of_scale = None if seen.counts is not None and seen.counts.know_the_labels else inputs.finding()
    found = [*([] if of_scale is None else [of_scale]), *seen.findings(), *findings_of(report.parts)]
    found += [_of_entropy(temperature, share) for temperature, share in report.entropies.items() if share < 0.01]
    if teacher is not None and (of_sizes := finding_of_sizes(run.student, teacher)) is not None:
        found.append(of_sizes)
    if look.by_heart is not None:
        capacity = finding_of_capacity(*look.by_heart, look.fit_steps)
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
