"""What reading a checkpoint can come upon, told in the user's words."""

import os
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

CHECKPOINT_KEY = "lightning_kd"
"""Under which a checkpoint holds what resuming needs beside weights."""


def check_same_architecture(saved: Mapping[str, Any], own: Mapping[str, Tensor], prefix: str, what: str) -> None:
    """Raise a ``ValueError`` in the user's words if a checkpoint's weights do not fit.

    Args:
        saved: State dict of the checkpoint.
        own: State dict of the module.
        prefix: What the keys to compare begin with.
        what: What these weights belong to, for the message.
    """
    theirs = {name: tuple(value.shape) for name, value in saved.items() if name.startswith(prefix)}
    ours = {name: tuple(value.shape) for name, value in own.items() if name.startswith(prefix)}
    if theirs == ours:
        return
    differ = [
        f"{name}: {theirs.get(name, 'absent')} in the checkpoint, {ours.get(name, 'absent')} here"
        for name in [*ours, *(n for n in theirs if n not in ours)]
        if theirs.get(name) != ours.get(name)
    ]
    raise ValueError(
        f"The checkpoint is of another {what} architecture; {len(differ)} tensor(s) differ, first "
        f"{'; '.join(differ[:3])}. Build the {what} that the checkpoint was made with; nothing has been loaded."
    )


@contextmanager
def reading(path: str | os.PathLike[str]) -> Iterator[None]:
    """Raise a ``ValueError`` that names the file if what is read inside the block breaks off in the middle."""
    try:
        yield
    except Exception as error:
        file = Path(path)
        if not file.is_file() or zipfile.is_zipfile(file):  # the table of contents, at the end, is there
            raise
        raise ValueError(
            f"The file {str(file)!r} ({file.stat().st_size} bytes) cannot be read to its end: it is no checkpoint, or "
            "writing it was interrupted. Take another one, or copy it again; nothing has been loaded."
        ) from error
