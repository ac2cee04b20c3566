"""Files that get their name only when they are written to the end, through links, and with the mode that they had."""

import errno
import os
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe (FIFO)",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}
_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
_REASONS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file would be larger than the system allows",
    errno.EACCES: "the folder is not writable for this user",
    errno.EPERM: "the folder is not writable for this user",
    errno.EROFS: "the disk is read-only",
    errno.ENOTDIR: "a part of the path is a file, not a folder",
    errno.EEXIST: "a part of the path is a file, not a folder",
    errno.ELOOP: "the links lead in a circle",
    errno.ENAMETOOLONG: "the name is too long",
}


@contextmanager
def atomic_write(target: Path, *, replace_links_within: bool = False) -> Iterator[BinaryIO]:
    """Open a hidden file beside ``target`` to write to, and rename it to ``target`` when the block ends.

    If the block fails, ``target`` is as before. A killed process leaves the hidden file ``.NAME.part``, which the next
    file of that name overwrites. A symbolic link stays one: the file that it leads to is replaced. A file that was
    there hands its mode and owner on. Of a file with several names (hard links) only this name gets the new content,
    which is told.

    Args:
        target: Path of the file; its folder is made if it is not there.
        replace_links_within: Whether to replace a link to another file of the same folder, which is a name that is
            given anew.

    Raises:
        ValueError: If ``target`` is there and no file: a folder, a device, a pipe. Nothing has been changed.
        OSError: If the file cannot be written; the message names it and the reason.

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
    try:
        real, former = _end_of_links(target, replace_links_within)
        real.parent.mkdir(parents=True, exist_ok=True)
        # Lightning 2.6 takes every name with "hpc_ckpt_" in it for a checkpoint to resume from on SLURM, so no
        # underscores
        part = real.with_name(f".{real.name.replace('_', '-')}.part")
        part.unlink(missing_ok=True)
        mode = 0o666 if former is None else stat.S_IMODE(former.st_mode)
        # opened with its mode, so that what others may not read is never readable for them
        opened = os.fdopen(os.open(part, _FLAGS, mode), "wb")
    except OSError as error:
        raise _in_words(error, target) from error
    try:
        with opened as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if former is not None:
            _hand_on(former, part, target)
        os.replace(part, real)
    except BaseException as error:
        part.unlink(missing_ok=True)
        cause = _system_error(error)
        if cause is not None and cause.errno in _REASONS:
            raise _in_words(cause, target) from error
        raise


def _end_of_links(target: Path, replace_links_within: bool) -> tuple[Path, os.stat_result | None]:
    """Return the path that a target leads to, and what is there; refuse what is no file."""
    real = target
    if target.is_symlink():
        real = Path(os.path.realpath(target))
        if replace_links_within and real.parent == Path(os.path.realpath(target.parent)):
            return target, None
    try:
        found = real.stat()
    except FileNotFoundError:
        return real, None
    if not stat.S_ISREG(found.st_mode):
        kind = _KINDS.get(stat.S_IFMT(found.st_mode), "something else")
        raise ValueError(
            f"{str(target)!r} is {kind}, not a file, so nothing has been written; give the path of a file."
        )
    return real, found


def _hand_on(former: os.stat_result, part: Path, target: Path) -> None:
    """Give the new file the owner and the mode of the former one, where the file system has such things."""
    now = part.stat()
    if hasattr(os, "chown") and (now.st_uid, now.st_gid) != (former.st_uid, former.st_gid):
        with suppress(OSError):  # only root may give a file away
            os.chown(part, former.st_uid, former.st_gid)
    with suppress(OSError):
        part.chmod(stat.S_IMODE(former.st_mode))
    if former.st_nlink > 1:
        warnings.warn(
            f"{str(target)!r} was one of {former.st_nlink} names of the same file (hard links). This name has the new "
            "content, the others keep the former one.",
            stacklevel=4,
        )


def _system_error(error: BaseException | None) -> OSError | None:
    """Return the error of the system behind an error; torch hides one in writing behind an error of its own."""
    while error is not None:
        if isinstance(error, OSError) and error.errno is not None:
            return error
        error = error.__cause__ or error.__context__
    return None


def _in_words(error: OSError, target: Path) -> OSError:
    reason = _REASONS.get(error.errno or 0, error.strerror or str(error))
    number = error.errno if error.errno is not None else errno.EIO
    # of these arguments Python makes the class that belongs to the number, such as PermissionError
    return OSError(number, f"Cannot write the file: {reason}; what was there before is unchanged", str(target))
