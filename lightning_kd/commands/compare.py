"""The command ``lightning-kd compare``: which strategy for the pair of networks of a fit."""

import logging
import os
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.utilities.model_helpers import is_overridden

from lightning_kd.commands.building.fit import Built
from lightning_kd.commands.parsing.fit_words import call_with_fit
from lightning_kd.commands.programs.arm import build
from lightning_kd.comparison.arms import STUDENT_ALONE, Configuration, arms_named
from lightning_kd.comparison.plan import Plan, Weights
from lightning_kd.comparison.progress import Progress
from lightning_kd.comparison.storage import open_storage, without_passwords
from lightning_kd.comparison.study import Study
from lightning_kd.comparison.tables import Table
from lightning_kd.comparison.trial import Starter
from lightning_kd.comparison.worker import Worker, state

_MOST_JOBS = 4
_INTERRUPTED = 130
_STORAGE = "LIGHTNING_KD_STORAGE"


def compare_strategies(words: list[str]) -> None:
    """Compare strategies.

    Args:
        words: Arguments as on the command line, after ``compare``.
    """
    try:
        table = call_with_fit(words, compare, "compare")
    except KeyboardInterrupt:
        print("Stopped. The same command goes on where it was.", file=sys.stderr)
        sys.exit(_INTERRUPTED)
    assert isinstance(table, Table)
    if table.winner is None:
        print("lightning-kd compare: no arm has a score.", file=sys.stderr)
        sys.exit(1)


def compare(
    config: str | os.PathLike[str] | Sequence[str],
    strategies: str = "all",
    seeds: int = 3,
    output: str | None = None,
    storage: str | None = None,
    study: str | None = None,
    weights: Weights = "sized",
    score: str | None = None,
    split: Literal["val", "test"] = "val",
    jobs: int | None = None,
    threads: int | None = None,
    retry_failed: bool = False,
    student: str = "",
) -> Table:
    """Train the student of a fit with each strategy and without a teacher, over seeds, and rank them.

    Every arm sees the same rows in the same order, begins with the same weights, and trains for as many steps. The
    student alone has the full task loss. Each run is a process of its own. Given again, the command runs only what is
    new, such as more seeds or strategies; killed, it goes on where it was.

    Args:
        config: The file of the fit's configuration, or the words that follow ``lightning-kd fit``.
        strategies: Which ones: all, or names with commas between, such as response_based,feature_based.
        seeds: Number of seeds, 1 to that number.
        output: Folder of all that is written.
        storage: URL of a database that workers on several machines share, such as postgresql://USER@HOST/DATABASE; by
            default LIGHTNING_KD_STORAGE, else a file in the output folder.
        study: Name of the study in the database; by default that of the output folder.
        weights: How a loss is weighed: sized, as large as the task's loss at the start; tuned, that times 0.001 to 10,
            chosen on training rows that are held out; or configured, as the configuration says.
        score: Which number is the score; by default accuracy, or what the task has in its place.
        split: Which data the score is of.
        jobs: How many runs at a time; by default one a core up to 4, and one on a GPU.
        threads: Threads of a run; by default 1 on the CPU. Another number gives other last digits.
        retry_failed: Whether runs that failed are done again.
        student: Which of several students to compare strategies for.

    Returns:
        The table, which was also written to ``results.csv``, ``results.md`` and ``report.html``.

    Raises:
        ValueError: If an option or the configuration cannot be meant.
        ImportError: If Optuna or scipy is not installed.
        RuntimeError: If the storage does not answer.
    """
    words = ["--config", os.fspath(config)] if isinstance(config, str | os.PathLike) else list(map(str, config))
    url = storage or os.environ.get(_STORAGE)
    try:
        return _compared(
            words,
            arms_named(strategies),
            _checked(seeds, "--seeds"),
            output,
            url,
            study,
            weights,
            score,
            split,
            None if jobs is None else _checked(jobs, "--jobs"),
            None if threads is None else _checked(threads, "--threads"),
            retry_failed=retry_failed,
            student=student,
        )
    except Exception as error:  # whatever goes wrong, its text may hold the URL, and the URL a password
        hidden = without_passwords(str(error))
        if url is None or hidden == str(error):
            raise
    raise RuntimeError(hidden)


def _compared(
    words: list[str],
    arms: list[str],
    seeds: int,
    output: str | None,
    url: str | None,
    study_name: str | None,
    weights: Weights,
    score: str | None,
    split: str,
    jobs: int | None,
    threads: int | None,
    *,
    retry_failed: bool,
    student: str,
) -> Table:
    if output is None:
        raise ValueError("Give --output DIR, the folder of all that is written.")
    progress = Progress()
    folder = Path(output)
    strategies = f"{len(arms) - 1} strateg{'y' if len(arms) == 2 else 'ies'}"
    each = f"{seeds} seed{'' if seeds == 1 else 's'} each"
    progress.line(f"Compares {strategies} and {STUDENT_ALONE}, {each}, in {folder}.")
    base, on_cpu = _read(words, split, student)
    threads = 1 if threads is None and on_cpu else threads
    jobs = jobs or (min(_MOST_JOBS, _cores() // (threads or 1) or 1) if on_cpu else 1)
    folder.mkdir(parents=True, exist_ok=True)
    name = study_name or folder.resolve().name
    database, leases = open_storage(url, folder, name)
    arguments = {"weights": weights, "score": score, "split": split, "threads": threads}
    study = Study(database, leases, name, state(arguments, base))
    try:
        if retry_failed:
            progress.line(f"Does {study.retry_failed()} failed runs again.")
        plan = Plan(arms, range(1, seeds + 1), weights)
        outcomes = study.outcomes()
        done, total = plan.finished(outcomes), plan.total(outcomes)
        at_once = "one at a time" if jobs == 1 else f"{jobs} at a time"
        there = f"; {done} are done already" if done else ""
        progress.line(f"{total} runs{there}. They run {at_once}, each in a process of its own.")
        starter = Starter("lightning_kd.commands.programs.arm", threads, folder / "arms" / "start.log", forks=on_cpu)
        worker = Worker(study, plan, base, folder, starter, score, split, jobs, threads, progress)
        table = worker.work()
    finally:
        study.close()
    winner = " and winner.yaml" if table.winner is not None else ""
    again = "" if not any(row.reason for row in table.rows) else " Runs that failed are done again with --retry_failed."
    progress.line(f"\n{table}\n\nWritten in {folder}: results.md, report.html, results.csv{winner}.{again}")
    return table


def _read(words: list[str], split: str, student: str = "") -> tuple[Configuration, bool]:
    """Return the configuration of a fit in full, and whether it trains on the CPU; refuse what cannot be compared."""
    with _quiet():
        cli = build(["fit", *words])
    name, module = Built(cli.model, cli.datamodule, cli.trainer).one(student)
    if module.task_loss is None:
        raise ValueError(
            "The configuration has no model.task_loss, so no student can be trained alone to compare with; give one, "
            "such as torch.nn.CrossEntropyLoss."
        )
    loader = "test_dataloader" if split == "test" else "val_dataloader"
    if not is_overridden(loader, cli.datamodule):
        raise ValueError(
            f"{type(cli.datamodule).__name__} has no {loader}, so there is nothing held out to score on; add one."
        )
    base: Any = cli.configuration()
    if name:
        base["model"] = _alone(base["model"], name)
    base["trainer"] = {key: value for key, value in base["trainer"].items() if value is not None}
    return base, isinstance(cli.trainer.accelerator, CPUAccelerator) and cli.trainer.world_size == 1


def _alone(model: Mapping[str, Any], student: str) -> dict[str, Any]:
    """Return the options of a module for one of its students."""
    losses = model.get("losses")
    own = losses[student] if isinstance(losses, Mapping) else losses
    others = {name: value for name, value in model.items() if name != "students"}
    return {**others, "student": model["students"][student], "losses": own}


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep back what Lightning says of a fit that is only looked at."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    before = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="No seed found")
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


def _checked(number: int, option: str) -> int:
    if number < 1:
        raise ValueError(f"{option}: expected 1 or more, got {number}.")
    return number


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
