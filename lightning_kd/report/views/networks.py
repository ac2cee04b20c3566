"""The two networks: how alike their layers are, how the parts pull at the student, and what both cost."""

from collections.abc import Mapping, Sequence
from typing import Any

from lightning_kd.report.charts import colours_of, heat_map, line_chart
from lightning_kd.report.page import Part, Row, Table, Text


def layers(facts: Mapping[str, Any]) -> list[Part]:
    """Return the likeness of the layers."""
    found = facts["layers"]
    if not found:
        return []
    values = [[float("nan") if one is None else one for one in row] for row in found["cka"]]
    known = [
        (v, s, t)
        for row, s in zip(values, found["student"], strict=True)
        for v, t in zip(row, found["teacher"], strict=True)
        if v == v
    ]
    alt = "No pair of layers has a value."
    if known:
        (best, ours, theirs), (worst, *_) = max(known), min(known)
        alt = f"CKA of each pair of layers, from {worst:.2f} to {best:.2f}; most alike are {ours} and {theirs}."
    chart = heat_map(
        values,
        found["student"],
        found["teacher"],
        alt=alt,
        row_title="student",
        column_title="teacher",
        title="linear CKA",
    )
    note = (
        f"Debiased linear CKA on {found['samples']} samples: 1 for features that are equal up to rotation and scale, "
        "about 0 for features that have nothing in common. Maps are averaged over their places, tokens over their "
        "positions. A pair that is alike is a candidate for a loss that compares layers."
    )
    return [Row([chart, Text(note, "note")])]


def gradients(facts: Mapping[str, Any]) -> list[Part]:
    """Return how much each part pulls at the student, and whether the parts pull in one direction."""
    found = facts["gradients"]
    if not found:
        return []
    last = found[-1]
    names, products = last["parts"], last["products"]
    shares = _shares(products)
    rows = [
        [
            name,
            f"{100 * shares[at]:.1f} %",
            products[at][at] ** 0.5,
            *[_cosine(products, at, other) for other in range(len(names))],
        ]
        for at, name in enumerate(names)
    ]
    several = len(names) > 1
    columns = ["part", "share", "length", *[f"cosine with {name}" for name in names]]
    rows = rows if several else [row[:3] for row in rows]
    parts: list[Part] = [
        Table(
            columns if several else columns[:3],
            rows,
            caption=f"First batch of epoch {last['epoch']}.",
        )
    ]
    if several and len(found) > 1:
        lines = {
            name: (
                [float(one["epoch"]) for one in found if name in one["parts"]],
                [100 * _shares(one["products"])[one["parts"].index(name)] for one in found if name in one["parts"]],
            )
            for name in names
        }
        ends = ", ".join(f"{name} from {line[1][0]:.0f} to {line[1][-1]:.0f} %" for name, line in lines.items())
        chart = line_chart(
            lines,
            alt=f"Share of each part: {ends}.",
            x="epoch",
            title="share of the gradient, in %",
            colours=colours_of(lines),
        )
        parts = [Row([chart, *parts])]
    if several:
        note = (
            "Gradients of the weighted parts at the student's parameters. The share is that of the lengths. A part "
            "with a share near 0 trains nothing: raise its weight. A negative cosine: two parts "
            "pull against each other."
        )
        parts.append(Text(note, "note"))
    return parts


def _shares(products: Sequence[Sequence[float]]) -> list[float]:
    lengths = [products[at][at] ** 0.5 for at in range(len(products))]
    return [length / (sum(lengths) or 1.0) for length in lengths]


def _cosine(products: Sequence[Sequence[float]], at: int, other: int) -> float | None:
    lengths = (products[at][at] * products[other][other]) ** 0.5
    return products[at][other] / lengths if lengths else None


def costs(facts: Mapping[str, Any]) -> list[Part]:
    """Return what both networks cost."""
    student, teacher, run = facts["student"], facts["teacher"], facts["run"]
    names = {
        "parameters": ("parameters", 1),
        "flops": ("operations of one sample", run["batch"] or 1),
        "latency": ("time of one batch, in ms", 1e-3),
    }
    rows: list[list[Any]] = []
    for name, (label, unit) in names.items():
        mine, its = student.get(name), teacher.get(name) if teacher else None
        if mine is not None:
            ratio = f"{its / mine:.2f}" if its and mine else None
            values = [
                _number(None if value is None else value / unit, whole=name != "latency") for value in (mine, its)
            ]
            rows.append([label, values[0], values[1], ratio] if teacher else [label, values[0]])
    if not rows:
        return []
    columns = ["", "student", "teacher", "ratio"] if teacher else ["", "student"]
    notes = []
    if student.get("flops") is not None:
        notes.append(
            "Operations are those of matrix products, convolutions and attention, two for each multiplication."
        )
    if student.get("latency") is not None:
        notes.append(
            f"Time is the shortest of several, of {run['batch']} samples in eval mode, uncompiled, on {run['device']}"
            + (f" with {run['threads']} threads." if run["device"] == "cpu" else ".")
        )
    return [Table(columns, rows), *[Text(note, "note") for note in notes]]


def _number(value: float | None, *, whole: bool) -> int | float | None:
    return value if value is None or not whole else round(value)
