"""Python's own standard library as text for a language model: bytes, split by file, nothing to download."""

import hashlib
import os
import sysconfig
from pathlib import Path
from typing import Literal, final

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

Part = Literal["train", "validation", "test"]

LEFT_OUT = {
    *("test", "tests", "idle_test", "idlelib", "turtledemo", "tkinter"),  # tests, programs, and what is not everywhere
    *("distutils", "lib2to3", "ensurepip", "site-packages", "dist-packages"),  # not in each version, or not its own
    *("encodings", "pydoc_data", "sitecustomize.py"),  # tables and texts made by programs, and what is of one machine
}
END_OF_FILE = 0
"""The byte after each file; source text does not hold it."""


def files(root: Path | None = None) -> list[Path]:
    """Return the source files of the standard library, relative to its folder, in order."""
    root, found = Path(sysconfig.get_path("stdlib")) if root is None else root, list[Path]()
    for folder, inside, names in os.walk(root):
        inside[:] = [name for name in inside if name not in LEFT_OUT and not name.startswith("config-")]  # walked next
        kept = (name for name in names if name not in LEFT_OUT and not name.startswith("_sysconfigdata"))
        found += (Path(folder, name).relative_to(root) for name in kept if name.endswith(".py"))
    return sorted(found)


def part_of(path: Path) -> Part:
    """Return the part that a file belongs to: one in ten is held out for validation, and one for the test.

    The name alone decides, so that a file is in the same part in every version of Python.

    Example:
        >>> part_of(Path("abc.py")), part_of(Path("json/decoder.py"))
        ('train', 'train')
    """
    tenth = int.from_bytes(hash_of(path)[:8]) % 10
    return "test" if tenth == 0 else "validation" if tenth == 1 else "train"


class Windows(Dataset[dict[str, Tensor]]):
    """Windows of a text, each of which begins with the last byte of the one before.

    A window's first byte is not predicted, so each byte of the text is predicted once, but for the first.

    Args:
        text: Bytes as integers of shape (N,).
        length: Bytes a window.

    Raises:
        ValueError: If the text is shorter than a window.
    """

    def __init__(self, text: Tensor, length: int) -> None:
        if len(text) < length:
            raise ValueError(
                f"SourceDataModule: expected at least {length} bytes of text for a window, got {len(text)}; read more "
                f"of it. The text is that of the source files in {sysconfig.get_path('stdlib')}."
            )
        self.rows = text.unfold(0, length, length - 1)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        row = self.rows[index].long()
        return {"input_ids": row, "labels": row}


@final
class SourceDataModule(LightningDataModule):
    """Serve the source text of Python's standard library, byte by byte.

    A batch is a dictionary with ``input_ids`` and ``labels``, the same integers 0 to 255 of shape (B, length). Tests
    and generated files are left out. No file is in two parts: its name alone decides where it is.

    Args:
        batch_size: Windows a batch, >= 1.
        length: Bytes a window, >= 2.
        train_bytes: Bytes of the training files that are read, > 0; by default all.
        held_out_bytes: Bytes of the validation files, and of the test files, that are read, > 0; by default all.

    Raises:
        ValueError: If a number is out of its range.
    """

    def __init__(
        self,
        batch_size: int = 16,
        length: int = 128,
        train_bytes: int | None = None,
        held_out_bytes: int | None = None,
    ) -> None:
        super().__init__()
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("length", length, 2),
            ("train_bytes", train_bytes, 1),
            ("held_out_bytes", held_out_bytes, 1),
        ):
            if value is not None and value < least:
                raise ValueError(f"SourceDataModule: expected {name} >= {least}, got {value}.")
        self.batch_size, self.length = batch_size, length
        self.sizes: dict[Part, int | None] = {
            "train": train_bytes,
            "validation": held_out_bytes,
            "test": held_out_bytes,
        }
        self.windows: dict[Part, Windows] = {}

    def setup(self, stage: str | None = None) -> None:
        """Read the files into memory, the same for every stage."""
        if not self.windows:
            self.windows = {part: Windows(read(part, size), self.length) for part, size in self.sizes.items()}

    def train_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        """Serve the windows of the training files in random order, whole batches only."""
        return DataLoader(self.windows["train"], self.batch_size, shuffle=True, drop_last=True)

    def val_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        """Serve the windows of the validation files."""
        return DataLoader(self.windows["validation"], self.batch_size)

    def test_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        """Serve the windows of the test files."""
        return DataLoader(self.windows["test"], self.batch_size)


def read(part: Part, size: int | None = None) -> Tensor:
    """Read the files of a part, one after the other, in an order that their names' hashes give.

    Args:
        part: Which part.
        size: Bytes to read; by default all. What is cut off is the same in every run.
    """
    root, text = Path(sysconfig.get_path("stdlib")), bytearray()
    for path in sorted((path for path in files(root) if part_of(path) == part), key=hash_of):
        if size is None or len(text) < size:
            text += (root / path).read_bytes() + bytes([END_OF_FILE])
    return torch.tensor(text[:size], dtype=torch.uint8)


def hash_of(path: Path) -> bytes:
    """Return the hash of a file's name, SHA-256."""
    return hashlib.sha256(path.as_posix().encode()).digest()
