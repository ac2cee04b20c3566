"""The files that the student was exported to."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_kd.export.student import ENDINGS
from lightning_kd.report.page import Part, Table, Text

_BYTES = 4
"""Of a parameter in float32."""


def exported(facts: Mapping[str, Any], files: Sequence[str | os.PathLike[str]]) -> list[Part]:
    """Return what the files are: their format, their size beside the teacher's weights, and their checksum.

    Args:
        facts: What is known of the run.
        files: The files.

    Raises:
        FileNotFoundError: If one is not there.
    """
    if not files:
        return []
    teacher = facts["teacher"] or {}
    whole = _BYTES * teacher.get("parameters", 0)
    rows = []
    for path in map(Path, files):
        if not path.is_file():
            raise FileNotFoundError(f"There is no exported file {str(path)!r} (looked from {os.getcwd()!r}).")
        size = path.stat().st_size
        smaller = f"{whole / size:.1f}\N{MULTIPLICATION SIGN} smaller" if whole and size else "-"
        with path.open("rb") as file:
            checksum = hashlib.file_digest(file, "sha256").hexdigest()
        kind = ENDINGS.get(path.suffix.lower(), "other")
        rows.append([path.name, kind, f"{size / 1e6:.3g} MB", smaller, checksum[:16]])
    note = "Smaller than the teacher's weights in float32. Of the checksum the first 16 digits are shown."
    return [Table(["file", "format", "size", "beside the teacher", "SHA-256"], rows), Text(note, "note")]
