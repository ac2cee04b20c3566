"""Files that get their name only when they are written to the end."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def atomic_write(target: Path) -> Iterator[BinaryIO]:
    """Open a hidden file beside ``target`` to write to, and rename it to ``target`` when the block ends.

    If the block fails, ``target`` is as before. A killed process leaves the hidden file ``.NAME.part``, which the next
    file of that name overwrites.

    Args:
        target: Path of the file; its folder is made if it is not there.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "new" / "a.txt"
        ...     with atomic_write(path) as file:
        ...         number = file.write(b"text")
        ...         before = path.exists()
        ...     before, path.read_bytes()
        (False, b'text')
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    # Lightning 2.6 takes every name with "hpc_ckpt_" in it for a checkpoint to resume from on SLURM, so no underscores
    part = target.with_name(f".{target.name.replace('_', '-')}.part")
    try:
        with part.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, target)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
