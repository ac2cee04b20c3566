"""Answers in a file that somebody else has made: a table with a row for each sample, in the order of the data set."""

from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

Holds = Literal["logits", "log_probabilities", "probabilities"]
SUFFIXES = (".npy", ".csv", ".parquet")
_LOOK = 4096
"""How many rows are looked at when the file is opened."""
_SLACK = {"probabilities": 1e-2, "log_probabilities": 1e-2}


class Table:
    r"""Rows of a file as logits: :math:`z = T \log p` of probabilities that were softened at temperature :math:`T`.

    Args:
        path: A file ``.npy`` (N, C), ``.csv`` with a row of C numbers for each sample, with or without a line of names,
            or ``.parquet`` with C columns of numbers.
        holds: What the numbers are.
        temperature: At which temperature probabilities were computed.

    Raises:
        FileNotFoundError: If there is no such file.
        ImportError: If it is a parquet file, and pyarrow is not installed.
        ValueError: If it holds no table of numbers, or not what ``holds`` says.
    """

    def __init__(self, path: Path, holds: Holds, temperature: float) -> None:
        if holds not in get_args(Holds):
            raise ValueError(f"CachedTeacher: expected holds to be one of {list(get_args(Holds))}, got {holds!r}.")
        if not path.is_file():
            raise FileNotFoundError(f"CachedTeacher: there is no file {str(path)!r}.")
        self.path = path
        self.holds: Holds = holds
        self.temperature = temperature
        self.table: Any = _read(path)
        if self.table.ndim != 2 or self.table.dtype.kind not in "fiu" or not len(self.table):
            raise ValueError(
                f"CachedTeacher: expected {str(path)!r} to hold a table of numbers (samples, classes), got "
                f"{self.table.dtype} of shape {self.table.shape}."
            )
        self._check(np.arange(min(_LOOK, len(self.table))))

    def __len__(self) -> int:
        return len(self.table)

    def read(self, rows: Tensor) -> Tensor:
        """Return rows as logits (B, C), float32.

        Raises:
            ValueError: If they are not what ``holds`` says.
        """
        wanted = rows.numpy()
        values = torch.from_numpy(self._check(wanted))
        if self.holds == "probabilities":
            values = values.clamp_min(torch.finfo(values.dtype).tiny).log()
        return (values if self.holds == "logits" else self.temperature * values).float()

    def _check(self, rows: Any) -> Any:
        values = np.asarray(self.table[rows], dtype=np.float64)
        bad = ~np.isfinite(values).all(1)
        reason = "is not finite"
        if not bad.any() and self.holds != "logits":
            sums = (values if self.holds == "probabilities" else np.exp(values)).sum(1)
            bad, reason = np.abs(sums - 1.0) > _SLACK[self.holds], "does not add up to 1"
            if self.holds == "probabilities" and (values < 0).any():
                bad, reason = (values < 0).any(1), "has numbers below 0"
        elif not bad.any():
            ones = (values >= 0).all(1) & (np.abs(values.sum(1) - 1.0) < 1e-3)
            if len(ones) > 1 and ones.all() and values.shape[1] > 1:
                bad, reason = ones, "adds up to 1, as probabilities do"
        if bad.any():
            raise ValueError(
                f"CachedTeacher: row {int(rows[int(bad.argmax())])} of {str(self.path)!r} {reason}, but "
                f"holds={self.holds!r}; say what the file holds: holds='logits', 'log_probabilities' or "
                "'probabilities'."
            )
        return values


def _read(path: Path) -> Any:
    if path.suffix == ".npy":
        return np.load(path, mmap_mode="r", allow_pickle=False)
    if path.suffix == ".csv":
        with path.open() as file:
            first = file.readline()
        names = any(_is_word(cell) for cell in first.split(","))
        try:
            return np.loadtxt(path, delimiter=",", skiprows=int(names), ndmin=2)
        except ValueError as error:
            raise ValueError(f"CachedTeacher: {str(path)!r} holds no table of numbers: {error}.") from error
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise ImportError(
            f"CachedTeacher reads {str(path)!r} with pyarrow; install it: pip install 'lightning_kd[parquet]'."
        ) from error
    table = parquet.read_table(path)
    return np.column_stack([column.to_numpy() for column in table.columns])


def _is_word(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return True
    return False
