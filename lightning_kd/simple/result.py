"""What ``distill`` returns: the trained student, its numbers, and a report."""

import html
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from lightning_kd.files.atomic import atomic_write
from lightning_kd.module import DistillationModule
from lightning_kd.report.charts import bar_chart
from lightning_kd.report.page import Code, Part, Row, Section, Table, Text, Tile, Tiles, has_extra, render
from lightning_kd.report.summary import summary_table

_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Distillation of {title}</title>
<style>
body {{ font: 16px/1.5 sans-serif; max-width: 46em; margin: 2em auto; padding: 0 1em; color-scheme: light dark }}
pre {{ overflow-x: auto }}
</style>
<h1>Distillation of {title}</h1>
<h2>What was chosen</h2>
<ul>{choices}</ul>
<h2>What came of it</h2>
<pre>{table}</pre>
</html>
"""


@dataclass(frozen=True)
class DistillationResult:
    """A trained student with its numbers.

    Args:
        student: The student, in eval mode and on the CPU: your own object, with nothing of the distillation on it.
        metrics: Numbers by name on the held-out data, such as ``accuracy``, ``teacher_accuracy`` and ``agreement``;
            empty without such data.
        choices: What was chosen, in words, also what you have left open.
        module: The module that was trained, for whoever wants to go on with it.

    Example:
        See :func:`lightning_kd.distill`.
    """

    student: nn.Module
    metrics: dict[str, float]
    choices: list[str] = field(repr=False)
    module: DistillationModule = field(repr=False)

    def __str__(self) -> str:
        return summary_table(self.module.run)

    def report(self, path: str | os.PathLike[str]) -> None:
        """Write a page of what was chosen and what came of it.

        Args:
            path: Where to: ``.html`` gives a page that needs nothing else, with a chart if the extra ``report`` is
                installed; ``.md`` and ``.txt`` give plain text.

        Raises:
            ValueError: If the ending is another one.
        """
        path = Path(path)
        title = type(self.student).__name__
        if path.suffix == ".html" and has_extra():
            text = render(f"Distillation of {title}", self._sections())
        elif path.suffix == ".html":
            choices = "".join(f"<li>{html.escape(choice)}</li>" for choice in self.choices)
            text = _PAGE.format(title=html.escape(title), choices=choices, table=html.escape(str(self)))
        elif path.suffix in (".md", ".txt"):
            lines = [f"# Distillation of {title}", "", *(f"- {choice}" for choice in self.choices), ""]
            text = "\n".join([*lines, "```text", str(self), "```", ""])
        else:
            raise ValueError(f"report: {str(path)!r} ends in none of .html, .md and .txt.")
        with atomic_write(path) as file:
            file.write(text.encode())

    def _sections(self) -> list[Section]:
        """Return what is known as the sections of a page."""
        pairs = [name for name in self.metrics if f"teacher_{name}" in self.metrics]
        tiles = [
            Tile(name, value, f"teacher: {self.metrics[f'teacher_{name}']:.4g}" if name in pairs else "")
            for name, value in self.metrics.items()
            if not name.startswith("teacher_")
        ]
        shares = [(name, weight, mean, 100 * share) for name, weight, mean, share in self.module.run.shares()]
        parts: list[Part] = [Table(["part", "weight", "mean", "share in %"], shares)]
        if len(shares) > 1:
            bars = {"share": [share for *_, share in shares]}
            told = ", ".join(f"{name} {share:.1f} %" for name, *_, share in shares)
            parts = [Row([bar_chart([name for name, *_ in shares], bars, alt=f"Shares of the loss: {told}."), *parts])]
        return [
            Section("", [Tiles(tiles)]),
            Section("What was chosen", [Text(choice) for choice in self.choices]),
            Section("What came of it", [Code(str(self))]),
            Section("Parts of the loss, in the last epoch", parts if shares else []),
        ]

    def export(self, path: str | os.PathLike[str], **options: Any) -> None:
        """Write the student, and nothing else; takes the arguments of ``DistillationModule.export``."""
        self.module.export(path, **options)
