"""What a comparison writes: every run in ``results.csv``, the ranked arms in ``results.md``, the winner as YAML."""

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import yaml

from lightning_kd.comparison.arms import STUDENT_ALONE, Configuration, configuration_of
from lightning_kd.comparison.plan import Plan, direction
from lightning_kd.comparison.statistics import Difference, Interval, differences_to, interval, seeds_wanted
from lightning_kd.comparison.study import Outcome, Unit
from lightning_kd.files.atomic import atomic_write

COLUMNS = (
    "arm",
    "seed",
    "score",
    "agreement",
    "agreement_on_mistakes",
    "calibration_error",
    "teacher_accuracy",
    "step_time",
    "peak_memory",
    "steps",
    "parameters",
    "seconds",
    "status",
    "error",
)
"""Of ``results.csv``: fractions 0..1, times in seconds, memory in bytes."""
_OF_WEIGHTS = {
    "sized": [
        "Weights: each loss begins as large as the task's own, which is far too much for some that hardly fall. "
        "--weights tuned tries 0.001 to 10 times that for each arm; do so before you give one up."
    ],
    "tuned": ["Weights: tuned for each arm on training rows that were held out; the score does not use these rows."],
    "configured": ["Weights: as configured, or the defaults of the losses; another weight may turn the ranking round."],
}
_SHARES = ("accuracy", "f1", "agreement", "agreement_on_mistakes", "calibration_error")
HEAD = (
    "arm",
    "score",
    "difference",
    "verdict",
    "agreement",
    "agreement on mistakes",
    "calibration error",
    "step time",
    "peak memory",
)


@dataclass(frozen=True)
class Row:
    """An arm with all its seeds.

    Args:
        arm: Name of the arm.
        scores: Score by seed.
        score: Mean with its interval, ``None`` if the arm is not ranked.
        difference: To the student alone; ``None`` for that itself, or where there is nothing to compare.
        means: Means over seeds of the other numbers, by name.
        reason: Why the arm is not ranked.
    """

    arm: str
    scores: Mapping[int, float]
    score: Interval | None
    difference: Difference | None
    means: Mapping[str, float]
    reason: str | None = None


@dataclass(frozen=True)
class Table:
    """The result of a comparison.

    Args:
        rows: The arms, the best first; those without a rank last.
        runs: Every run, a dictionary for each with the columns of ``results.csv``.
        score: Name of the number that is the score.
        higher_is_better: Whether a larger score is better.
        notes: What a reader must know, a sentence each.
    """

    rows: Sequence[Row]
    runs: Sequence[Mapping[str, object]]
    score: str
    higher_is_better: bool
    notes: Sequence[str]

    @property
    def ranked(self) -> list[Row]:
        """The arms that have a rank, the best first."""
        return [row for row in self.rows if row.score is not None]

    @property
    def winner(self) -> str | None:
        """The arm with the best mean score, ``None`` if no arm has one."""
        return self.ranked[0].arm if self.ranked else None

    def __str__(self) -> str:
        return "\n".join([*_aligned(self), "", *self.notes])

    def markdown(self) -> str:
        """Return the page that ``results.md`` holds."""
        lines = [_line(HEAD), _line(["---"] * len(HEAD)), *(_line(cells(row, self.score)) for row in self.rows)]
        return "\n".join(["# Comparison", "", *lines, "", *(f"- {note}" for note in self.notes), ""])


def table_of(plan: Plan, outcomes: Mapping[Unit, Outcome]) -> Table:
    """Return the table of the outcomes so far.

    Args:
        plan: The arms and seeds.
        outcomes: What is done.
    """
    score, higher = direction(outcomes)
    known = [unit for unit in outcomes if unit.kind == "score"]
    arms = list(dict.fromkeys((*plan.arms, *(unit.arm for unit in known))))
    seeds = sorted({*plan.seeds, *(unit.seed for unit in known)})
    runs = [(arm, seed, _outcome(plan, outcomes, arm, seed)) for seed in seeds for arm in arms]
    scores: dict[str, dict[int, float]] = {arm: {} for arm in arms}
    reasons: dict[str, str] = {}
    for arm, seed, outcome in runs:
        if outcome is not None and outcome.status == "ok" and outcome.score is not None:
            scores[arm][seed] = outcome.score
        elif outcome is not None:
            kind = "NaN" if outcome.status == "nan" else "failed"
            reasons.setdefault(arm, f"{kind}, seed {seed}: {outcome.error}")
    ranked = {arm: by_seed for arm, by_seed in scores.items() if by_seed and arm not in reasons}
    alone = ranked.get(STUDENT_ALONE, {})
    others = {arm: by_seed for arm, by_seed in ranked.items() if arm != STUDENT_ALONE}
    differences = differences_to(alone, others, higher_is_better=higher)
    rows = [
        Row(
            arm,
            by_seed,
            interval(list(by_seed.values())) if arm in ranked else None,
            differences.get(arm),
            _means(outcome for one, _, outcome in runs if one == arm),
            reasons.get(arm),
        )
        for arm, by_seed in scores.items()
    ]
    sign = -1 if higher else 1
    rows.sort(key=lambda row: (row.score is None, sign * row.score.mean if row.score else 0.0))
    lines = [_run(arm, seed, outcome) for arm, seed, outcome in runs if outcome is not None]
    notes = [*_notes(rows, alone, differences, score, higher_is_better=higher), *_OF_WEIGHTS[plan.weights]]
    return Table(rows, lines, score, higher, notes)


def write_tables(
    folder: Path,
    plan: Plan,
    outcomes: Mapping[Unit, Outcome],
    base: Configuration,
    threads: int | None,
    *,
    whole: bool = True,
) -> Table:
    """Write ``results.csv`` and ``results.md``, and the winner as ``winner.yaml`` if the table is whole.

    Args:
        folder: The output folder.
        plan: The arms and seeds.
        outcomes: What is done.
        base: The user's configuration.
        threads: Threads that torch computed with.
        whole: Whether all is done.
    """
    table = table_of(plan, outcomes)
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(table.runs)
    _write(folder / "results.csv", text.getvalue())
    _write(folder / "results.md", table.markdown())
    if whole and table.winner is not None:
        _write(folder / "winner.yaml", _winner(table, plan, outcomes, base, threads))
    return table


def formatted(name: str, value: float | None) -> str:
    """Return a number as a reader wants it: fractions in percent.

    Example:
        >>> formatted("accuracy", 0.9677), formatted("mse", 0.0123456), formatted("mse", None)
        ('96.8 %', '0.01235', '-')
    """
    if value is None or not math.isfinite(value):
        return "-"
    return f"{100 * value:.1f} %" if name in _SHARES else f"{value:.4g}"


def _outcome(plan: Plan, outcomes: Mapping[Unit, Outcome], arm: str, seed: int) -> Outcome | None:
    """Return what came of an arm with a seed, also where the arm did not come so far."""
    return outcomes.get(Unit("score", arm, seed)) or plan.why_not(arm, outcomes)


def _means(outcomes: Iterable[Outcome | None]) -> dict[str, float]:
    found: dict[str, list[float]] = {}
    for outcome in outcomes:
        for name, value in (outcome.metrics if outcome is not None and outcome.status == "ok" else {}).items():
            found.setdefault(name, []).append(value)
    return {name: mean(values) for name, values in found.items()}


def _run(arm: str, seed: int, outcome: Outcome) -> dict[str, object]:
    numbers: dict[str, object] = dict(outcome.metrics) if outcome.status == "ok" else {}
    numbers["score"] = outcome.score if outcome.status == "ok" else None
    for name in ("steps", "parameters", "peak_memory"):
        if isinstance(value := numbers.get(name), float):
            numbers[name] = int(value)
    error = None if outcome.error is None else " ".join(outcome.error.split())
    return {**numbers, "arm": arm, "seed": seed, "status": outcome.status, "error": error}


def _notes(
    rows: Sequence[Row],
    alone: Mapping[int, float],
    differences: Mapping[str, Difference],
    score: str,
    *,
    higher_is_better: bool,
) -> list[str]:
    better = "higher is better" if higher_is_better else "lower is better"
    count = len(differences)
    notes = [
        f"Score: {score} ({better}) on held-out data after the last epoch, mean over the seeds with its "
        "95 % interval by Student's t.",
        f"Difference: to {STUDENT_ALONE}, the same student trained by the labels alone; paired by seed, with the 95 % "
        "interval of this arm by itself.",
        f"Verdict: at 5 %, corrected for {count} comparisons by Holm's method. BEATS: better than {STUDENT_ALONE}. "
        "DOES NOT BEAT: worse. CANNOT TELL: the seeds do not show which.",
    ]
    if not alone:
        notes.append(f"{STUDENT_ALONE} has no score, so there is nothing to compare with.")
        return notes
    if len(alone) < 2:
        notes.append("One seed says nothing about chance; give at least --seeds 3, better 5.")
    beating = [row for row in rows if row.difference is not None and row.difference.verdict == "BEATS"]
    if beating:
        notes.append(f"Ship {beating[0].arm}: the best arm that is shown to beat {STUDENT_ALONE}.")
    elif differences:
        notes.append(f"No arm is shown to beat {STUDENT_ALONE}. {_more_seeds(rows, alone, higher_is_better)}".strip())
    notes.append(
        "Agreement: how often the student names the teacher's class; on mistakes: of those where the teacher is wrong. "
        "Calibration error: how far confidence is from accuracy, 0 is best. Times are of runs beside each other."
    )
    steps = {round(row.means["steps"]) for row in rows if "steps" in row.means}
    if len(steps) > 1:
        notes.append(f"The arms trained for {min(steps)} to {max(steps)} steps, not for the same: compare with care.")
    return notes


def _more_seeds(rows: Sequence[Row], alone: Mapping[int, float], higher_is_better: bool) -> str:
    """Say how many seeds might settle the matter for the arm with the best mean."""
    best = next((row for row in rows if row.difference is not None), None)
    if best is None or best.difference is None or (best.difference.interval.mean > 0) != higher_is_better:
        return ""
    count = sum(row.difference is not None for row in rows)
    wanted = seeds_wanted([value - alone[seed] for seed, value in best.scores.items() if seed in alone], count)
    if wanted is None or wanted <= best.difference.pairs:
        return ""
    return f"About {wanted} seeds might show it for {best.arm}: --seeds {wanted} runs only what is new."


def cells(row: Row, score: str) -> list[str]:
    """Return what stands in the columns of an arm."""
    if row.score is None:
        return [row.arm, "not ranked", "", f"{row.reason or 'not done'}", *[""] * (len(HEAD) - 4)]
    means = row.means
    memory = means.get("peak_memory")
    step = means.get("step_time")
    return [
        row.arm,
        _with_interval(score, row.score),
        "" if row.difference is None else _with_interval(score, row.difference.interval, signed=True),
        "" if row.difference is None else row.difference.verdict,
        formatted("agreement", means.get("agreement")),
        formatted("agreement", means.get("agreement_on_mistakes")),
        formatted("agreement", means.get("calibration_error")),
        "-" if step is None else f"{1000 * step:.3g} ms",
        "-" if memory is None else f"{memory / 2**20:.0f} MiB",
    ]


def _with_interval(name: str, found: Interval, *, signed: bool = False) -> str:
    factor, digits, unit = (100.0, ".2f", " %") if name in _SHARES else (1.0, ".4g", "")
    sign = "+" if signed else ""
    text = f"{factor * found.mean:{sign}{digits}}{unit}"
    if not math.isfinite(found.low):
        return text
    return f"{text} [{factor * found.low:{sign}{digits}}, {factor * found.high:{sign}{digits}}]"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/').replace(chr(10), ' ') for cell in cells)} |"


def _aligned(table: Table) -> list[str]:
    """Return the ranked arms as columns for a terminal, and below them why the others have no rank."""
    lines_of = [list(HEAD[:5]), *(cells(row, table.score)[:5] for row in table.ranked)]
    widths = [max(len(line[column]) for line in lines_of) for column in range(5)]
    lines = [
        "  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines_of
    ]
    others = [row for row in table.rows if row.score is None]
    if others:
        lines += ["", "not ranked:", *(f"  {row.arm}: {row.reason or 'not done'}"[:400] for row in others)]
    return lines


def _winner(
    table: Table, plan: Plan, outcomes: Mapping[Unit, Outcome], base: Configuration, threads: int | None
) -> str:
    row = table.ranked[0]
    seed = min(row.scores)
    made = configuration_of(base, row.arm, seed, plan.weights_of(row.arm, outcomes), threads=threads)
    verdict = "" if row.difference is None else f" Does it beat {STUDENT_ALONE}? {row.difference.verdict}."
    head = [
        f"# {row.arm}: the arm with the best mean {table.score}.{verdict}",
        f"# With this seed its {table.score} is {row.scores[seed]:.10g} after the last epoch:",
        "#   lightning-kd fit --config winner.yaml",
        "# Classes of your own are found in this folder, in the current one, and on PYTHONPATH.",
        "# SameDraws and SameRows repeat the rows and draws of the comparison; without them the number is another.",
    ]
    return "\n".join([*head, yaml.safe_dump(made, sort_keys=False)])


def _write(path: Path, text: str) -> None:
    with atomic_write(path) as file:
        file.write(text.encode())
