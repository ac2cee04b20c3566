"""Teacher against student by class, by confidence, and row by row."""

import base64
import io
from collections import Counter
from typing import Any

import torch
from torch import Tensor

from lightning_kd.metrics import CalibrationError
from lightning_kd.report.charts import INK, STUDENT, TEACHER, bar_chart, draw
from lightning_kd.report.page import Part, Picture, Pictures, Row, Table, Text, Value
from lightning_kd.report.record import Record

_CLASSES, _CONFUSIONS = 20, 10
"""How many classes, and confusions, are shown."""


def by_class(record: Record) -> list[Part]:
    """Return how often each network has each class right, and what the student takes for what."""
    found = _labelled(record)
    if found is None:
        return []
    student, teacher, target = found
    names = _names(record, student.shape[1])
    says, its = student.argmax(1), None if teacher is None else teacher.argmax(1)
    rows: list[tuple[str, int, float, float | None]] = []
    for number in target.unique().tolist():
        of = target == number
        right = None if its is None else float((its[of] == number).float().mean())
        rows.append((names[number], int(of.sum()), float((says[of] == number).float().mean()), right))
    rows.sort(key=lambda row: (row[2] - (row[3] if row[3] is not None else 1.0), row[0]))
    shown = rows[:_CLASSES]
    bars = {"student": [100 * row[2] for row in shown]}
    if its is not None:
        bars["teacher"] = [100 * (row[3] or 0.0) for row in shown]
    worst = ", ".join(f"{row[0]} {100 * row[2]:.0f} %" for row in shown[:3])
    order = "largest loss against the teacher first" if its is not None else "lowest first"
    more = f" The {_CLASSES} of {len(rows)} classes where the student loses most." if len(rows) > len(shown) else ""
    chart = bar_chart(
        [row[0] for row in shown],
        bars,
        alt=f"Share of rows that are right, by class, {order}: {worst} for the student.",
        title="right, in %",
        caption=f"By class, {order}.{more}",
        colours=(STUDENT, TEACHER),
        limit=100,
    )
    return [Row([chart, *_confusions(says, its, target, names)])]


def _confusions(says: Tensor, its: Tensor | None, target: Tensor, names: list[str]) -> list[Part]:
    wrong = (says != target).nonzero().flatten().tolist()
    if not wrong:
        return [Text("The student has every row right.", "note")]
    pairs = Counter((int(target[row]), int(says[row])) for row in wrong)
    rows: list[list[Value]] = []
    for (true, said), count in pairs.most_common(_CONFUSIONS):
        of = int((target == true).sum())
        both = None if its is None else int(((target == true) & (its == said)).sum())
        rows.append([names[true], names[said], count, f"{100 * count / of:.1f} %", both])
    columns = ["is", "student says", "rows", "of this class", "teacher says so too"]
    if its is None:
        columns, rows = columns[:-1], [row[:-1] for row in rows]
    return [Table(columns, rows, caption="The student's most frequent mistakes.")]


def confidence(record: Record) -> list[Part]:
    """Return the reliability diagrams of both networks."""
    found = _labelled(record)
    if found is None:
        return []
    student, teacher, target = found
    charts = [_reliability("student", student, target, STUDENT)]
    if teacher is not None:
        charts.append(_reliability("teacher", teacher, target, TEACHER))
    note = "A bar below the line: in this bin the network is right less often than it says. Steps: share of the rows."
    return [Pictures(charts), Text(note, "note")]


def _reliability(name: str, scores: Tensor, target: Tensor, colour: str) -> Picture:
    metric = CalibrationError(sync_on_compute=False)
    metric.update(scores, target)
    counts, confident, right = (values.tolist() for values in metric.reliability())
    error, bins = float(metric.compute()), metric.bins
    total = sum(counts)

    def plot(axes: Any) -> None:
        middles = [(number + 0.5) / bins for number in range(bins)]
        known = [number for number in range(bins) if counts[number]]
        axes.bar([middles[n] for n in known], [right[n] for n in known], width=0.8 / bins, color=colour)
        axes.stairs([count / total for count in counts], [n / bins for n in range(bins + 1)], color=INK, linewidth=1.0)
        axes.plot([0, 1], [0, 1], color="#7b8794", linestyle="--", linewidth=1.2)
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1)
        axes.set_xlabel("confidence")
        axes.set_ylabel("right")
        axes.set_title(f"{name}, calibration error {error:.3f}")

    full = max(range(bins), key=counts.__getitem__)
    alt = (
        f"Reliability of the {name}: calibration error {error:.3f}; in the fullest bin, with {counts[full]} rows, "
        f"confidence {confident[full]:.2f} and {right[full]:.2f} right."
    )
    return draw(plot, alt=alt)


def disagreements(record: Record) -> list[Part]:
    """Return the images on which the networks differ most."""
    outputs = record.outputs
    if "pictures" not in outputs or "teacher_logits" not in outputs:
        return []
    names = _names(record, outputs["student_logits"].shape[1])
    target = outputs.get("target")
    pictures = []
    for picture, row in zip(outputs["pictures"], outputs["picture_rows"].tolist(), strict=True):
        ours, theirs = (outputs[f"{role}_logits"][row].softmax(0) for role in ("student", "teacher"))
        words = ", ".join(
            f"{role} {names[int(p.argmax())]} ({100 * float(p.max()):.0f}\N{NO-BREAK SPACE}%)"
            for role, p in (("student", ours), ("teacher", theirs))
        )
        true = None if target is None or int(target[row]) < 0 else int(target[row])
        is_what = "" if true is None else f"is {names[true] if true < len(names) else true}; "
        pictures.append(
            Picture(_png(picture), f"Row {row}: {is_what}{words}.", f"{is_what}{words}", width=picture.shape[2])
        )
    note = (
        "The rows whose distributions over the classes differ most (total variation). Each image has its own black and "
        "white, as the student gets it."
    )
    return [Pictures(pictures, small=True), Text(note, "note")]


def _png(picture: Tensor) -> str:
    """Return an image of bytes (C, H, W) as a data URI."""
    from matplotlib.image import imsave

    array = picture.expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy()
    file = io.BytesIO()
    imsave(file, array, format="png")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def _labelled(record: Record) -> tuple[Tensor, Tensor | None, Tensor] | None:
    """Return the outputs of the rows that have a label, ``None`` without such."""
    outputs = record.outputs
    if "student_logits" not in outputs or "target" not in outputs:
        return None
    student, teacher, target = outputs["student_logits"], outputs.get("teacher_logits"), outputs["target"]
    known = (target >= 0) & (target < student.shape[1])
    if not bool(torch.any(known)):
        return None
    return student[known], None if teacher is None else teacher[known], target[known]


def _names(record: Record, count: int) -> list[str]:
    given = record.facts.get("classes")
    return [str(name) for name in given] if given and len(given) == count else [str(number) for number in range(count)]
