"""The page of a recorded run: what the student has learnt, from whom, how, and at what cost."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_kd.files.atomic import atomic_write
from lightning_kd.metrics import compare_outputs
from lightning_kd.report.page import Part, Section, Table, Text, Tile, Tiles, render
from lightning_kd.report.record import Record
from lightning_kd.report.views.classes import by_class, confidence, disagreements
from lightning_kd.report.views.exported import exported
from lightning_kd.report.views.networks import costs, gradients, layers
from lightning_kd.report.views.progress import losses, validation

FIDELITY = {
    "accuracy": ("Accuracy of the student", "share of rows that it has right"),
    "teacher_accuracy": ("Accuracy of the teacher", "the same, of the teacher"),
    "agreement": ("Agreement", "share of rows on which both name the same class"),
    "agreement_on_mistakes": ("Agreement on mistakes", "of the rows that the teacher has wrong: the same wrong class"),
    "negative_flips": ("Negative flips", "share of rows that the teacher has right and the student wrong"),
    "fidelity_kl": ("Distance of distributions", "mean KL(teacher || student) at temperature 1, in nats; 0 is a copy"),
    "confidence_correlation": ("Correlation of confidence", "1 if both find the same rows hard"),
    "calibration_error": ("Calibration error of the student", "mean gap between confidence and accuracy, 15 bins"),
    "teacher_calibration_error": ("Calibration error of the teacher", "the same, of the teacher"),
}
"""What each number of ``compare_outputs`` is called, and what it means."""
_SHARES = ("accuracy", "teacher_accuracy", "agreement", "agreement_on_mistakes", "negative_flips")


def write_page(
    run: str | os.PathLike[str], output: str | os.PathLike[str], exports: Sequence[str | os.PathLike[str]] = ()
) -> None:
    """Write the page of a recorded run.

    Args:
        run: The folder of the record.
        output: The file to write.
        exports: The files that the student was exported to.

    Raises:
        FileNotFoundError: If there is no record, or no file of an export.
        ValueError: If what is there is none.
        ModuleNotFoundError: If the packages of the page are not installed; names the extra.
    """
    page = page_of(Record.read(run), exports)
    with atomic_write(Path(output)) as file:
        file.write(page.encode())


def page_of(record: Record, exports: Sequence[str | os.PathLike[str]] = ()) -> str:
    """Return the page of a record, and of the files that the student was exported to, as HTML."""
    facts = record.facts
    student, teacher = facts["student"]["name"], facts["teacher"] and facts["teacher"]["name"]
    numbers = _numbers(record)
    sections = [
        Section("", [_tiles(facts, numbers)]),
        Section("What the student copies", _fidelity(record, numbers)),
        Section("Losses over time", losses(facts)),
        Section("Validation by epoch", validation(facts)),
        Section("By class", by_class(record)),
        Section("Confidence", confidence(record)),
        Section("Where they disagree most", disagreements(record)),
        Section("Layers", layers(facts)),
        Section("Gradients of the parts", gradients(facts)),
        Section("What they cost", costs(facts)),
        Section("What was exported", exported(facts, exports)),
        Section("About this run", _about(facts)),
    ]
    title = f"{student}, distilled from {teacher}" if teacher else f"{student}, trained without a teacher"
    return render(title, [one for one in sections if one.parts], subtitle=_subtitle(facts))


def _subtitle(facts: Mapping[str, Any]) -> str:
    run = facts["run"]
    parts = [f"{run['epochs']} epochs, {run['steps']:,} steps", f"losses: {', '.join(facts['losses']) or 'none'}"]
    if not run["finished"]:
        parts.append("this run has not ended, or was broken off")
    return " \N{MIDDLE DOT} ".join(parts)


def _numbers(record: Record) -> dict[str, float]:
    outputs = record.outputs
    if "student_logits" not in outputs or "teacher_logits" not in outputs:
        return {}
    try:
        return compare_outputs(outputs["student_logits"], outputs["teacher_logits"], outputs.get("target"))
    except ValueError:  # ids that name no class: what needs none is still known
        return compare_outputs(outputs["student_logits"], outputs["teacher_logits"], None)


def _tiles(facts: Mapping[str, Any], numbers: Mapping[str, float]) -> Part:
    last = facts["metrics"][-1]["values"] if facts["metrics"] else {}
    student, teacher = facts["student"], facts["teacher"] or {}
    tiles = []
    for name in ("accuracy", "f1", "mse", "pearson", "cosine", "perplexity"):
        value, its = last.get(f"val/{name}"), last.get(f"val/teacher_{name}")
        if value is not None:
            note = "" if its is None else f"teacher: {_of(name, its)}"
            tiles.append(Tile(f"{name} on validation data", _of(name, value), note))
    if (same := last.get("val/agreement", numbers.get("agreement"))) is not None:
        tiles.append(Tile("agreement with the teacher", _of("agreement", same)))
    for name, label, unit in (
        ("parameters", "parameters", ""),
        ("flops", "operations", "a batch"),
        ("latency", "time", "a batch"),
    ):
        mine, its = student.get(name), teacher.get(name)
        if mine and its:
            ratio = its / mine
            words = (
                f"{ratio:.1f}\N{MULTIPLICATION SIGN} less"
                if ratio >= 1
                else f"{1 / ratio:.1f}\N{MULTIPLICATION SIGN} more"
            )
            tiles.append(Tile(f"{label} {unit}".strip(), words, "student against teacher"))
    return Tiles(tiles)


def _of(name: str, value: float) -> str:
    return f"{100 * value:.1f} %" if name in (*_SHARES, "f1") else f"{value:.3g}"


def _fidelity(record: Record, numbers: Mapping[str, float]) -> list[Part]:
    if not numbers:
        why = record.facts["notes"].get("outputs")
        return [Text(f"Not compared row by row: {why}.", "note")] if why and record.facts["teacher"] else []
    rows = [
        [label, _of(name, numbers[name]) if numbers[name] == numbers[name] else None, meaning]
        for name, (label, meaning) in FIDELITY.items()
        if name in numbers
    ]
    run = record.facts["run"]
    whole = "all" if run["rows"] == run["seen"] else "the first"
    return [
        Table(["number", "value", "what it says"], rows),
        Text(f"On {whole} {run['rows']:,} of {run['seen']:,} rows of the last validation.", "note"),
    ]


def _about(facts: Mapping[str, Any]) -> list[Part]:
    run = facts["run"]
    rows = [
        ["student", facts["student"]["name"]],
        ["teacher", facts["teacher"]["name"] if facts["teacher"] else "none"],
        *[[f"loss {name}", kind] for name, kind in facts["losses"].items()],
        ["device", run["device"]],
        ["precision", run["precision"]],
        ["processes", str(run["processes"])],
        ["duration", _duration(run["seconds"])],
        ["torch", facts["torch"]],
    ]
    notes = [
        Text(f"Not measured: {what}, since {why}.", "note")
        for what, why in facts["notes"].items()
        if what not in ("outputs",)
    ]
    return [Table(["", ""], rows), *notes]


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"
