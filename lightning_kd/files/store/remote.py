"""Stores at a distance: each file is copied to this machine when it is first read."""

import hashlib
import os
import tempfile
from pathlib import Path

import fsspec
from filelock import FileLock

from lightning_kd.files.store.manifest import NAME, Shard


class Remote:
    """A store at a URL that fsspec knows, and the folder of its copy.

    The copy is in the user's cache folder, by the URL and the content of the manifest, so a store that was written anew
    has another. Of several processes one copies a file, under a name of its own, and renames it when it is whole.

    Args:
        url: The folder, such as ``s3://bucket/answers``.

    Raises:
        FileNotFoundError: If there is no finished store.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        try:
            with fsspec.open(f"{self.url}/{NAME}", "rb") as file:
                manifest: bytes = file.read()
        except FileNotFoundError:
            raise FileNotFoundError(
                f"There is no finished store of a teacher's answers at {url!r}: it has no {NAME}."
            ) from None
        name = hashlib.sha256(self.url.encode() + manifest).hexdigest()[:32]
        self.folder = cache_folder() / "stores" / name
        self.folder.mkdir(parents=True, exist_ok=True)
        self._write(NAME, manifest)

    def fetch(self, shard: Shard) -> None:
        """Copy a file, unless it is here."""
        path = self.folder / shard.file
        if _is_whole(path, shard):
            return
        with FileLock(f"{path}.lock"):
            if not _is_whole(path, shard):
                with fsspec.open(f"{self.url}/{shard.file}", "rb") as file:
                    self._write(shard.file, file.read())

    def _write(self, name: str, content: bytes) -> None:
        handle, part = tempfile.mkstemp(prefix=f".{name}.", dir=self.folder)
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.replace(part, self.folder / name)


def is_remote(path: str) -> bool:
    """Whether a path is a URL."""
    return "://" in path


def exists(url: str) -> bool:
    """Whether there is a finished store at a URL."""
    system, path = fsspec.core.url_to_fs(f"{url}/{NAME}")
    return bool(system.exists(path))


def cache_folder() -> Path:
    """Return the folder in which this package keeps what it could get again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lightning_kd"


def _is_whole(path: Path, shard: Shard) -> bool:
    return path.is_file() and path.stat().st_size == shard.size
