"""Errors of reading a checkpoint, in the words of its user: another architecture, code in the file, half a file."""

import os
import pickle
import re
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lightning_kd.capture.private import names_of_any_size

CHECKPOINT_KEY = "lightning_kd"
"""The key of a checkpoint under which we keep what resuming needs beside weights."""


class DamagedError(ValueError):
    """A file does not hold what was written."""


def check_same_architecture(
    saved: Mapping[str, Any], module: nn.Module, prefix: str, what: str, under: str = ""
) -> None:
    """Raise a ``ValueError`` in the user's words if a checkpoint's weights do not fit.

    Parts that load in a way of their own take buffers of other sizes, such as the ranges of observers, whose size the
    first input gives. Only the names of such buffers are compared.

    Args:
        saved: State dict of the checkpoint.
        module: The module that is to load it.
        prefix: What the keys to compare begin with.
        what: What these weights belong to, for the message.
        under: What the checkpoint has before the module's own keys.
    """
    own = {f"{under}{name}": value for name, value in module.state_dict().items()}
    free = {f"{under}{name}" for name in names_of_any_size(module)}
    saved_shapes = {name: _shape(value) for name, value in saved.items() if name.startswith(prefix)}
    own_shapes = {name: _shape(value) for name, value in own.items() if name.startswith(prefix)}
    own_shapes |= {name: saved_shapes[name] for name in own_shapes.keys() & saved_shapes.keys() & free}
    if saved_shapes == own_shapes:
        return
    differ = [
        f"{name}: {saved_shapes.get(name, 'absent')} in the checkpoint, {own_shapes.get(name, 'absent')} here"
        for name in own_shapes | saved_shapes
        if saved_shapes.get(name) != own_shapes.get(name)
    ]
    raise ValueError(
        f"The checkpoint is of another {what} architecture; {len(differ)} tensor(s) differ, first "
        f"{'; '.join(differ[:3])}. Build the {what} that the checkpoint was made with; nothing has been loaded."
    )


def _shape(value: object) -> object:
    """Return the shape of a weight; of another state of a module (``get_extra_state``) that there is one."""
    return tuple(value.shape) if isinstance(value, Tensor) else "a state"


@contextmanager
def reading(source: object) -> Iterator[None]:
    """Raise a ``ValueError`` that names the file, and the class in it, if the block reads anything but data.

    Args:
        source: Path, URL or open file that is read.
    """
    try:
        yield
    except (FileNotFoundError, PermissionError, DamagedError):
        raise
    except Exception as error:  # a broken file makes torch raise errors of any class
        if reason := _reason(source, error):
            raise ValueError(reason) from error
        raise


def is_zip(file: Any) -> bool:
    """Whether a path or an open file has the end of a zip file, whose table of contents may be damaged."""
    try:
        return zipfile.is_zipfile(file)
    except zipfile.BadZipFile:  # Python's own question fails where the end is damaged
        return True


def named(source: object) -> str:
    """Return what a message calls a path, a URL or an open file."""
    return f"The file {str(source)!r}" if isinstance(source, str | os.PathLike) else "An open file"


def _reason(source: object, error: Exception) -> str | None:
    path, name = Path(source) if isinstance(source, str | os.PathLike) else None, named(source)
    found = isinstance(error, pickle.UnpicklingError) and re.search(r"(?:GLOBAL|class|function) `?([\w.]+)", str(error))
    if found:
        return (
            f"{name} holds {found[1]!r}, which is neither a tensor nor plain data and may run code when it is read; "
            "nothing has been loaded. Save weights alone: torch.save(model.state_dict(), path), or safetensors."
        )
    if path is None or not path.is_file():
        return None
    if is_zip(path):  # a zip file has its table of contents at its end, so the file is complete
        return f"{name} holds no checkpoint; nothing has been loaded. {error}"
    return (
        f"{name} ({path.stat().st_size} bytes) cannot be read to its end: it is no checkpoint, or writing it was "
        "interrupted. Take another one, or copy it again; nothing has been loaded."
    )
