"""Where a study is kept: a SQLite file in the output folder, or a database that workers on many machines share."""

import re
from pathlib import Path
from typing import Any

from lightning_kd.comparison.leases import FileLeases, Leases, PostgresLeases

REMEDY = 'pip install "lightning_kd[compare]"'
_USER = re.compile(r"(\w://[^\s/:@]*:)[^\s/]+(@)")
_QUERY = re.compile(r"(password=)[^&\s'\"]+", re.IGNORECASE)


def without_passwords(text: str) -> str:
    """Return a text in which the password of every URL is hidden.

    Example:
        >>> without_passwords("no answer from postgresql://ann:s3cr@t@db/studies?sslmode=require")
        'no answer from postgresql://ann:***@db/studies?sslmode=require'
    """
    return _QUERY.sub(r"\1***", _USER.sub(r"\1***\2", text))


def open_storage(url: str | None, folder: Path, study: str) -> tuple[Any, Leases]:
    """Open the storage of a study, and make its tables if they are not there.

    Args:
        url: ``postgresql://...`` or ``sqlite:///...``; by default ``study.db`` in the output folder.
        folder: The output folder.
        study: Name of the study.

    Returns:
        Optuna's storage, and the locks of its workers.

    Raises:
        ImportError: If Optuna, or what the database needs, is not installed.
        ValueError: If the URL is none, or names another kind of database.
        RuntimeError: If the database does not answer.
    """
    try:
        import optuna
        import sqlalchemy
    except ImportError as error:
        raise ImportError(f"A comparison keeps its study with Optuna: {REMEDY}") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    parsed = sqlalchemy.make_url(f"sqlite:///{folder / 'study.db'}") if url is None else _parsed(url)
    kind = parsed.get_backend_name()
    arguments: dict[str, Any] = {"connect_args": {"timeout": 60}} if kind == "sqlite" else {"pool_pre_ping": True}
    failed: str | None = None
    try:
        leases = _leases(parsed, kind, study)
        with leases.alone():  # two workers that make the tables at once would be in each other's way
            storage = optuna.storages.RDBStorage(parsed.render_as_string(hide_password=False), arguments)
    except ImportError:
        failed = f"The driver of {kind} is not installed: {REMEDY}"
    except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.OptunaError, OSError) as error:
        failed = f"The storage does not answer: {without_passwords(_in_one_line(error))}"
    if failed is not None:  # outside of the handlers, so that no traceback tells the URL
        raise RuntimeError(failed)
    return storage, leases


def _parsed(url: str) -> Any:
    import sqlalchemy

    try:
        parsed = sqlalchemy.make_url(url)
    except (sqlalchemy.exc.ArgumentError, ValueError):
        parsed = None
    if parsed is None:
        raise ValueError("--storage is no URL of a database, such as postgresql://USER@HOST/DATABASE.")
    kind = parsed.get_backend_name()
    if kind == "sqlite" and not parsed.database:
        raise ValueError("--storage names no file; write sqlite:///FILE.")
    if kind not in ("postgresql", "sqlite"):
        raise ValueError(
            f"--storage names a database of kind {kind!r}, whose locks this package does not know; use PostgreSQL for "
            "several machines, SQLite or no --storage for one."
        )
    return parsed.set(drivername="postgresql+psycopg") if parsed.drivername == "postgresql" else parsed


def _leases(url: Any, kind: str, study: str) -> Leases:
    if kind == "sqlite":
        return FileLeases(Path(f"{url.database}.workers").absolute())
    return PostgresLeases(url, study)


def _in_one_line(error: BaseException) -> str:
    """Return the first line of what a driver says."""
    cause = getattr(error, "orig", None) or error
    return str(cause).strip().partition("\n")[0][:300]
