"""What happened over time: the parts of the loss, their weights, and what each validation gave."""

from collections.abc import Mapping, Sequence
from typing import Any

from lightning_kd.report.charts import STUDENT, TEACHER, colours_of, line_chart
from lightning_kd.report.page import Part, Picture, Pictures, Row, Table, Text

_PAIRS = ("accuracy", "f1", "mse", "pearson", "cosine", "perplexity", "loss")
_LINES = 8
"""How many lines a chart has at most."""
_POINTS = 150
"""How many points a line has at most."""

Line = tuple[list[float], list[float]]


def losses(facts: Mapping[str, Any]) -> list[Part]:
    """Return the curves of the loss's parts and of their weights."""
    curve = facts["curve"]
    values = {name: _known(curve["steps"], column) for name, column in curve["values"].items()}
    values = {name: line for name, line in list(values.items())[:_LINES] if line[0]}
    if not values:
        return []
    ends = ", ".join(
        f"{name} from {_mean(line[1][: _tenth(line)]):.3g} to {_mean(line[1][-_tenth(line) :]):.3g}"
        for name, line in values.items()
    )
    smooth = {name: _smoothed(line) for name, line in values.items()}
    charts = [
        line_chart(
            smooth,
            alt=f"Parts of the loss over the steps: {ends}.",
            title="unweighted parts",
            log=True,
            colours=colours_of(values),
        )
    ]
    weights = {name: _known(curve["steps"], column) for name, column in curve["weights"].items()}
    told = Table(
        ["part", "at first", "at the end", "weight"],
        [
            [name, _mean(line[1][: _tenth(line)]), _mean(line[1][-_tenth(line) :]), _last(weights.get(name))]
            for name, line in values.items()
        ],
        caption="Means of the first and last tenth.",
    )
    moving = {name: line for name, line in weights.items() if len(set(line[1])) > 1}
    if moving:
        ends = ", ".join(f"{name} from {line[1][0]:.3g} to {line[1][-1]:.3g}" for name, line in moving.items())
        charts.append(
            line_chart(moving, alt=f"Weights over the steps: {ends}.", title="weights", colours=colours_of(moving))
        )
    parts: list[Part] = [Row([*charts, told])]
    together = curve["stride"] * max(_together(line) for line in values.values())
    if together > 1:
        parts.append(Text(f"Each point is the mean of {together} steps.", "note"))
    return parts


def validation(facts: Mapping[str, Any]) -> list[Part]:
    """Return the curves of what each validation gave, teacher beside student where both were measured."""
    metrics = facts["metrics"]
    charts: list[Picture] = []
    for name in metrics[-1]["values"] if metrics else ():
        prefix, _, short = name.rpartition("/")
        if short.startswith("teacher_"):
            continue
        mine = _over_epochs(metrics, name)
        if not mine[0]:
            continue
        its = _last_of(metrics, f"{prefix}/teacher_{short}" if prefix else f"teacher_{short}")
        lines, words = {"student": mine}, f"from {mine[1][0]:.4g} to {mine[1][-1]:.4g}"
        if its is not None and short in _PAIRS:
            lines["teacher"] = ([mine[0][0], mine[0][-1]], [its, its])
            words += f", teacher {its:.4g}"
        charts.append(
            line_chart(
                lines, alt=f"{name} over the epochs: {words}.", x="epoch", title=name, colours=(STUDENT, TEACHER)
            )
        )
    return [Pictures(charts[:_LINES])] if charts else []


def _together(line: Line) -> int:
    """Return how many neighbours are drawn as one point, so that single batches do not hide the course."""
    return -(-len(line[0]) // _POINTS)


def _smoothed(line: Line) -> Line:
    many = _together(line)
    starts = range(0, len(line[0]), many)
    return [line[0][start : start + many][-1] for start in starts], [_mean(line[1][at : at + many]) for at in starts]


def _known(steps: Sequence[float], column: Sequence[float | None]) -> Line:
    known = [(step, value) for step, value in zip(steps, column, strict=True) if value is not None]
    return [float(step) for step, _ in known], [float(value) for _, value in known]


def _tenth(line: Line) -> int:
    return max(1, len(line[1]) // 10)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _last(line: Line | None) -> float | None:
    return line[1][-1] if line and line[1] else None


def _over_epochs(metrics: Sequence[Mapping[str, Any]], name: str) -> Line:
    known = [(one["epoch"], one["values"][name]) for one in metrics if one["values"].get(name) is not None]
    return [float(epoch) for epoch, _ in known], [float(value) for _, value in known]


def _last_of(metrics: Sequence[Mapping[str, Any]], name: str) -> float | None:
    """Return the last value of a name; the teacher's is logged once only."""
    found = [one["values"][name] for one in metrics if one["values"].get(name) is not None]
    return found[-1] if found else None
