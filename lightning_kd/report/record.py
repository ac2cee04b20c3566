"""A run as plain data: what ``RecordRun`` writes into a folder, and a page is made of, without the run itself.

``record.json`` holds names and numbers, ``outputs.safetensors`` the outputs of both networks. Neither holds code.
"""

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from lightning_kd.files.atomic import atomic_write

FORMAT = 1
"""The number of what a record holds; a file of a larger one was written by a later version."""
_FACTS = ("student", "teacher", "losses", "run", "curve", "metrics", "gradients", "layers", "classes", "notes")
_NAME, _OUTPUTS = "record.json", "outputs.safetensors"


@dataclass(slots=True)
class Record:
    """What is known of a run.

    Args:
        facts: Names and numbers, as JSON has them: ``student``, ``teacher``, ``run``, ``curve``, ``metrics``,
            ``gradients``, ``layers``, ``classes``, ``notes``.
        outputs: Tensors of some rows of the validation data: ``student_logits``, ``teacher_logits``, ``target``,
            ``pictures`` and the ``picture_rows`` that they belong to; whichever there are.
    """

    facts: dict[str, Any] = field(default_factory=dict)
    outputs: dict[str, Tensor] = field(default_factory=dict)

    def write(self, folder: str | os.PathLike[str]) -> None:
        """Write the record into a folder, each file as a whole; an older record there is replaced.

        Args:
            folder: The folder, which is made if it is not there.
        """
        folder = Path(folder)
        if self.outputs:
            tensors = {name: value.contiguous() for name, value in self.outputs.items()}
            with atomic_write(folder / _OUTPUTS) as file:
                file.write(safetensors.torch.save(tensors))
        else:
            (folder / _OUTPUTS).unlink(missing_ok=True)
        text = json.dumps({"format": FORMAT, **_plain(self.facts)}, allow_nan=False, indent=1)
        with atomic_write(folder / _NAME) as file:
            file.write(text.encode())

    @classmethod
    def read(cls, folder: str | os.PathLike[str]) -> "Record":
        """Read the record in a folder.

        Args:
            folder: The folder.

        Raises:
            FileNotFoundError: If there is none; names the remedy.
            ValueError: If what is there is none, or one of a later version.
        """
        folder = Path(folder)
        path = folder / _NAME
        if not path.is_file():
            raise FileNotFoundError(_no_record(folder))
        try:
            facts = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{str(path)!r} is no record of a run: {error}.") from error
        if not isinstance(facts, dict) or not isinstance(facts.get("format"), int):
            raise ValueError(f"{str(path)!r} is no record of a run: it names no format.")
        if facts["format"] > FORMAT:
            raise ValueError(
                f"{str(path)!r} was written by a later version of lightning_kd; update: pip install -U lightning_kd."
            )
        missing = [name for name in _FACTS if name not in facts]
        if missing:
            raise ValueError(f"{str(path)!r} is no whole record of a run: it lacks {', '.join(missing)}.")
        outputs = {}
        if (folder / _OUTPUTS).is_file():
            try:
                outputs = safetensors.torch.load_file(folder / _OUTPUTS)
            except safetensors.SafetensorError as error:
                raise ValueError(f"{str(folder / _OUTPUTS)!r} cannot be read: {error}.") from error
        return cls(facts, outputs)


def _no_record(folder: Path) -> str:
    inner = sorted(path.parent.name for path in folder.glob(f"*/{_NAME}"))
    if inner:
        return f"{str(folder)!r} holds the records {', '.join(inner)}; name one: {str(folder / inner[0])!r}."
    what = "holds no record of a run" if folder.is_dir() else "is no folder"
    return (
        f"{str(folder)!r} {what}. A fit writes one with the callback lightning_kd.report.RecordRun(output="
        f"{str(folder)!r})."
    )


def _plain(value: Any) -> Any:
    """Return a value with ``None`` in the place of what is not finite, which JSON does not know."""
    if isinstance(value, Mapping):
        return {str(name): _plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
