"""Who lives: a worker holds a lock that the operating system or the server frees when the worker ends, however it ends.

There is no heartbeat and no time limit. A worker that trains one epoch for hours keeps its lock; one that is killed,
or whose machine is switched off, loses it.
"""

import hashlib
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

_HELD: set[Path] = set()
"""The files that this process has locked: to open one again and close it would free the lock."""
_TURN = threading.RLock()
"""Locks on files are those of a process, so its threads take turns by this one."""


class Leases(ABC):
    """The locks of a study's workers, and the one lock under which its queue is changed."""

    @abstractmethod
    def hold(self, worker: str) -> None:
        """Take the lock of a worker until this process ends; again if it was lost, such as with a connection."""

    @abstractmethod
    def is_alive(self, worker: str) -> bool:
        """Whether the process that holds a worker's lock lives. Call it inside :meth:`alone`."""

    @abstractmethod
    def alone(self) -> Any:
        """Return a context in which no other worker is."""

    @abstractmethod
    def close(self) -> None:
        """Give the lock of the worker back."""


class FileLeases(Leases):
    """Locks on files of one folder, for workers whose storage is a file.

    The folder must be on a file system that has locks: a disk of the machine, or NFS 4.

    Args:
        folder: Where the files lie.

    Raises:
        RuntimeError: If the system has no such locks.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     leases = FileLeases(Path(folder))
        ...     leases.hold("one")
        ...     with leases.alone():
        ...         found = leases.is_alive("one"), leases.is_alive("another")
        ...     leases.close()
        >>> found
        (True, False)
    """

    def __init__(self, folder: Path) -> None:
        try:
            import fcntl
        except ImportError as error:
            raise RuntimeError(
                "A comparison in a folder needs the file locks of Linux or macOS; on Windows run it under WSL."
            ) from error
        self._fcntl = fcntl
        self._folder = folder.absolute()
        self._own: tuple[str, IO[bytes]] | None = None

    def hold(self, worker: str) -> None:
        """Take the lock of a worker until this process ends."""
        if self._own is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            # A lock of this kind ends with the process. Children do not have it, so a data loader's worker that
            # outlives its parent holds nothing.
            file = open(self._path(worker), "ab")  # noqa: SIM115  the lock is held until the process ends
            self._fcntl.lockf(file, self._fcntl.LOCK_EX)
            _HELD.add(self._path(worker))
            self._own = worker, file

    def is_alive(self, worker: str) -> bool:
        """Whether the process that holds a worker's lock lives."""
        if self._path(worker) in _HELD:
            return True
        try:
            with open(self._path(worker), "r+b") as file:
                self._fcntl.lockf(file, self._fcntl.LOCK_EX | self._fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except OSError:
            return True
        self._path(worker).unlink(missing_ok=True)
        return False

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Wait until no other worker is in this context."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with _TURN, open(self._folder / "queue.lock", "ab") as file:
            self._fcntl.lockf(file, self._fcntl.LOCK_EX)
            yield

    def close(self) -> None:
        """Give the lock of the worker back."""
        if self._own is not None:
            worker, file = self._own
            self._path(worker).unlink(missing_ok=True)
            file.close()
            _HELD.discard(self._path(worker))
            self._own = None

    def _path(self, worker: str) -> Path:
        return self._folder / f"{worker}.lock"


class PostgresLeases(Leases):
    """Advisory locks of a PostgreSQL server, each held by the open connection of a worker.

    The server frees a lock when the connection ends: at once when the process ends, and after about two minutes
    without an answer when a machine or a network fails. Connect to the server itself: a pool that hands one connection
    to several clients in turn would lose the locks.

    Args:
        url: SQLAlchemy URL of the server.
        study: Name of the study.
    """

    def __init__(self, url: Any, study: str) -> None:
        import sqlalchemy

        self._sql = sqlalchemy
        self._study = study
        self._worker: str | None = None
        self._connection: Any = None
        self._holds = False
        self._engine = sqlalchemy.create_engine(
            url,
            poolclass=sqlalchemy.pool.NullPool,
            isolation_level="AUTOCOMMIT",
            connect_args={
                "keepalives": 1,
                "keepalives_idle": 30,
                "keepalives_interval": 15,
                "keepalives_count": 6,
                "options": "-c tcp_keepalives_idle=30 -c tcp_keepalives_interval=15 -c tcp_keepalives_count=6",
            },
        )

    def hold(self, worker: str) -> None:
        """Take the lock of a worker until this process ends; again if the connection was lost."""
        self._worker = worker
        if self._connection is not None:
            try:
                self._ask("SELECT 1")
            except self._sql.exc.DBAPIError:
                self._drop()
        if self._connection is None:
            self._connect()
        if not self._holds:
            self._ask("SELECT pg_advisory_lock(:key)", key=self._key(worker))
            self._holds = True

    def is_alive(self, worker: str) -> bool:
        """Whether the connection that holds a worker's lock lives."""
        if worker == self._worker:
            return True
        if not self._ask("SELECT pg_try_advisory_lock(:key)", key=self._key(worker)):
            return True
        self._ask("SELECT pg_advisory_unlock(:key)", key=self._key(worker))
        return False

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Wait until no other worker is in this context."""
        if self._connection is None:
            self._connect()
        key = self._key("queue")
        self._ask("SELECT pg_advisory_lock(:key)", key=key)
        try:
            yield
        finally:
            with suppress(self._sql.exc.DBAPIError):  # a lost connection has given it back
                self._ask("SELECT pg_advisory_unlock(:key)", key=key)

    def close(self) -> None:
        """Give the lock of the worker back."""
        self._drop()
        self._engine.dispose()

    def _drop(self) -> None:
        """Give up the connection, and the locks with it."""
        if self._connection is not None:
            with suppress(self._sql.exc.DBAPIError):
                self._connection.close()
        self._connection, self._holds = None, False

    def _connect(self) -> None:
        self._connection = self._engine.connect()
        with suppress(self._sql.exc.DBAPIError):  # servers before PostgreSQL 14 have no such limit
            self._ask("SET idle_session_timeout = 0")

    def _ask(self, text: str, **values: Any) -> Any:
        result = self._connection.execute(self._sql.text(text), values)
        return result.scalar() if result.returns_rows else None

    def _key(self, name: str) -> int:
        digest = hashlib.sha256(f"lightning_kd/{self._study}/{name}".encode()).digest()
        return int.from_bytes(digest[:8], "big", signed=True)
