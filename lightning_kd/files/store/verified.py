"""The checksum of a large file is computed once: what was found whole is remembered by size and time of change."""

import hashlib
import json
import os
from contextlib import suppress
from pathlib import Path

from filelock import FileLock

from lightning_kd.files.store.manifest import Shard
from lightning_kd.files.store.remote import cache_folder


def checksum(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_size(path: Path, shard: Shard) -> os.stat_result:
    """Raise an error in words unless a file is there and has the size that the manifest says.

    Raises:
        FileNotFoundError: If it is not there.
        ValueError: If it is cut, or longer.
    """
    try:
        found = path.stat()
    except FileNotFoundError:
        raise FileNotFoundError(
            f"The file {str(path)!r} of the store is not there; copy the whole folder, or write the store anew."
        ) from None
    if found.st_size != shard.size:
        how = "cut" if found.st_size < shard.size else "longer than it was"
        raise ValueError(
            f"The file {str(path)!r} of the store is {how}: it has {found.st_size:,} bytes, not {shard.size:,}. Copy "
            "it again, or write the store anew."
        )
    return found


def check_whole(path: Path, shard: Shard) -> None:
    """Raise a ``ValueError`` in words if a file is not, bit for bit, what was written."""
    check_size(path, shard)
    if checksum(path) != shard.sha256:
        raise ValueError(
            f"The file {str(path)!r} of the store is damaged: its checksum is not that in the manifest. Copy it again, "
            "or write the store anew."
        )


def check_once(path: Path, shard: Shard) -> os.stat_result:
    """Check a file as :func:`check_whole` does, unless a process of this user has done so since it last changed.

    What was found is remembered outside the store, which may be read-only. One process checks, others wait for it.

    Returns:
        What the system says of the file.
    """
    found = check_size(path, shard)
    place = _place(path)
    if place is None:
        check_whole(path, shard)
        return found
    known = [found.st_size, found.st_mtime_ns, found.st_ino, shard.sha256]
    if _read(place) == known:
        return found
    with FileLock(f"{place}.lock"):
        if _read(place) != known:
            check_whole(path, shard)
            part = place.with_suffix(f".{os.getpid()}")
            part.write_text(json.dumps(known))
            part.replace(place)
    return found


def _place(path: Path) -> Path | None:
    """Return the file that remembers a check, ``None`` if no folder of the user can be written."""
    folder = cache_folder() / "verified"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    if not os.access(folder, os.W_OK):
        return None
    return folder / f"{hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:32]}.json"


def _read(place: Path) -> object:
    with suppress(OSError, ValueError):
        return json.loads(place.read_text())
    return None
