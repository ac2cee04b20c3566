"""The loop of a worker: claim a unit, run it in a process of its own, write down what came of it, and so on."""

import signal
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from lightning_kd.comparison.arms import Configuration, configuration_of, for_evaluation, quiet
from lightning_kd.comparison.plan import Plan
from lightning_kd.comparison.progress import Progress, time_of
from lightning_kd.comparison.report_page import html_of
from lightning_kd.comparison.study import Claim, Outcome, Study, Unit
from lightning_kd.comparison.tables import Table, formatted, write_tables
from lightning_kd.comparison.trial import Job, Running, Starter
from lightning_kd.comparison.weights import HELD_OUT
from lightning_kd.files.atomic import atomic_write
from lightning_kd.report.page import MissingExtraError

_LOOK = 0.1
_ASK = 2.0
"""Seconds between two looks at the processes, and between two questions to the storage."""
_SHORT = 0.25
"""Fraction of the epochs that a weight is tried for in the first round."""


@dataclass
class Worker:
    """Does the open units of a study.

    Args:
        study: The study.
        plan: Which units there are.
        base: The user's configuration.
        output: The output folder.
        starter: Starts the process of a unit.
        score: Name of the number that is the score, ``None`` for the first that the task has.
        split: Which data the score is of.
        jobs: How many units run at a time.
        threads: Threads of each, ``None`` for as many as it likes.
        progress: Where to say what goes on.
    """

    study: Study
    plan: Plan
    base: Configuration
    output: Path
    starter: Starter
    score: str | None = None
    split: str = "val"
    jobs: int = 1
    threads: int | None = 1
    progress: Progress = field(default_factory=Progress)

    def work(self) -> Table:
        """Do units until none is open, and return the table.

        Raises:
            KeyboardInterrupt: If it was stopped; what it had begun can be claimed again.
        """
        running: list[Running] = []
        outcomes = self.study.outcomes()
        seconds: list[float] = []
        asked = 0.0
        stop = _CtrlC()
        try:
            while True:
                stop.check()
                ended = [(one, outcome) for one in running if (outcome := one.poll()) is not None]
                for one, outcome in ended:
                    running.remove(one)
                    seconds.append(time.monotonic() - one.started)
                    self.study.finish(one.claim, outcome)
                    outcomes = self.study.outcomes()
                    self._tell(one.claim.unit, outcome, outcomes, seconds)
                if len(running) < self.jobs and (ended or time.monotonic() - asked > _ASK or not running):
                    outcomes = self.study.outcomes()
                    asked = time.monotonic()
                    while len(running) < self.jobs and (claim := self.study.claim(self.plan.open_units(outcomes))):
                        running.append(self._started(claim, outcomes))
                    if not running and not self.plan.open_units(outcomes):
                        break
                self._show(running, outcomes)
                time.sleep(_LOOK if running else _ASK)
        finally:
            for one in running:
                one.stop()
                self.study.give_back(one.claim)
            self.starter.close()
            self.progress.close()
            stop.close()
        table = write_tables(self.output, self.plan, outcomes, self.base, self.threads)
        try:
            page = html_of(table)
        except MissingExtraError as error:
            self.progress.line(f"report.html is left out. {error}")
        else:
            with atomic_write(self.output / "report.html") as file:
                file.write(page.encode())
        return table

    def _started(self, claim: Claim, outcomes: Mapping[Unit, Outcome]) -> Running:
        try:
            return self._start(claim, outcomes)
        except BaseException:
            self.study.give_back(claim)
            raise

    def _start(self, claim: Claim, outcomes: Mapping[Unit, Outcome]) -> Running:
        unit = claim.unit
        folder = self.output / "arms" / unit.folder
        trying = unit.kind == "tune"
        weights = None
        if unit.kind != "scale":
            weights = self.plan.weights_of(unit.arm, outcomes, unit.factor if trying else None)
        made = configuration_of(
            self.base,
            unit.arm,
            unit.seed,
            weights,
            threads=self.threads,
            held_out=HELD_OUT if trying else None,
        )
        stop_after = _SHORT if trying and unit.rung == 0 else None
        evaluation = quiet(for_evaluation(self.base), str(folder))
        split = "val" if trying else self.split
        Job(unit.kind, evaluation, self.score, split, self.threads, stop_after, sys.path).write(folder)
        with atomic_write(folder / "fit.yaml") as file:
            file.write(yaml.safe_dump(quiet(made, str(folder)), sort_keys=False).encode())
        return Running(claim, self.starter.start(folder), folder)

    def _tell(self, unit: Unit, outcome: Outcome, outcomes: Mapping[Unit, Outcome], seconds: Sequence[float]) -> None:
        total, done = self.plan.total(outcomes), self.plan.finished(outcomes)
        left = (total - done) * sum(seconds) / len(seconds) / self.jobs
        told = f"about {time_of(left)} left" if total > done else "all done"
        width = len(str(total))
        self.progress.line(f"[{done:>{width}}/{total}] {_named(unit)}: {self._said(unit, outcome)} ({told})")
        if unit.kind == "score":
            write_tables(self.output, self.plan, outcomes, self.base, self.threads, whole=False)

    def _said(self, unit: Unit, outcome: Outcome) -> str:
        if outcome.status == "nan":
            return f"NaN: {outcome.error}"[:300]
        if outcome.status == "failed":
            return f"FAILED: {outcome.error}"[:300]
        if unit.kind == "scale":
            return f"weight {', '.join(f'{value:g}' for value in outcome.metrics.values())}"
        name = outcome.scored or "score"
        return f"{name} {formatted(name, outcome.score)}"

    def _show(self, running: Sequence[Running], outcomes: Mapping[Unit, Outcome]) -> None:
        total, done = self.plan.total(outcomes), self.plan.finished(outcomes)
        if running:
            now = ", ".join(f"{_named(one.claim.unit)} {100 * one.done:.0f} %" for one in running)
            self.progress.now(f"[{done}/{total}] runs now: {now}")
        else:
            others = ", ".join(f"{_named(unit)} on {worker}" for unit, worker in self.study.running()[:2])
            self.progress.now(f"[{done}/{total}] waits for other workers: {others}")


class _CtrlC:
    """Keeps the first Ctrl-C until the storage is not being written to; the second one is not kept."""

    def __init__(self) -> None:
        self._pressed = False
        is_main = threading.current_thread() is threading.main_thread()
        self._takes = is_main and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        if self._takes:
            signal.signal(signal.SIGINT, self._press)

    def check(self) -> None:
        """Raise what Ctrl-C raises, if it was pressed."""
        if self._pressed:
            raise KeyboardInterrupt

    def close(self) -> None:
        """Have Ctrl-C do what it did before."""
        if self._takes:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def _press(self, number: int, frame: object) -> None:
        self._pressed = True
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _named(unit: Unit) -> str:
    if unit.kind == "score":
        return f"{unit.arm}, seed {unit.seed}"
    return f"{unit.arm}, size of the loss" if unit.kind == "scale" else f"{unit.arm}, weight x {unit.factor:g}"


def state(arguments: Mapping[str, Any], base: Configuration) -> dict[str, Any]:
    """Return what the scores of a study depend on; runs with another state are not comparable.

    Args:
        arguments: The options of the comparison that change a score.
        base: The user's configuration, of which is left out what a fit only shows and writes.
    """
    shown = ("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing", "default_root_dir")
    kept = {name: value for name, value in base.items() if name not in ("summary", "seed_everything", "trainer")}
    trainer = {name: value for name, value in base["trainer"].items() if name not in (*shown, "log_every_n_steps")}
    return {**kept, "trainer": trainer, "compare": dict(arguments)}
