"""Reads a store to its end."""

import os

from lightning_kd.files.store.reader import Store


def verify(folder: str | os.PathLike[str]) -> int:
    """Compute the checksum of every file of a store.

    Args:
        folder: The folder of the store.

    Returns:
        The number of its rows.

    Raises:
        FileNotFoundError: If there is no finished store, or a file is missing.
        ValueError: If a file is cut, longer or damaged; the message names it.
    """
    store = Store(os.fspath(folder))
    store.check_all()
    return len(store)
