"""What ``distill`` returns: the trained student, its numbers, and a report."""

import html
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from lightning_kd.files.atomic import atomic_write
from lightning_kd.module import DistillationModule
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
            path: Where to: ``.html`` gives a page that needs nothing else, ``.md`` and ``.txt`` plain text.

        Raises:
            ValueError: If the ending is another one.
        """
        path = Path(path)
        title = type(self.student).__name__
        if path.suffix == ".html":
            choices = "".join(f"<li>{html.escape(choice)}</li>" for choice in self.choices)
            text = _PAGE.format(title=html.escape(title), choices=choices, table=html.escape(str(self)))
        elif path.suffix in (".md", ".txt"):
            lines = [f"# Distillation of {title}", "", *(f"- {choice}" for choice in self.choices), ""]
            text = "\n".join([*lines, "```text", str(self), "```", ""])
        else:
            raise ValueError(f"report: {str(path)!r} ends in none of .html, .md and .txt.")
        with atomic_write(path) as file:
            file.write(text.encode())

    def export(self, path: str | os.PathLike[str], **options: Any) -> None:
        """Write the student, and nothing else; takes the arguments of ``DistillationModule.export``."""
        self.module.export(path, **options)
