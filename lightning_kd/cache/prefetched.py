"""Lets the workers of a data loader read stored answers ahead of the step."""

import os
from collections.abc import Sequence
from typing import Any, final

import torch
from torch.utils.data import Dataset

from lightning_kd.data.indexed import check_by_number, targets_of
from lightning_kd.files.store.reader import Store


@final
class Prefetched(Dataset[Any]):
    """Read the stored answers of each sample together with the sample; the samples are as they were.

    A worker of the data loader that reads a sample reads the rows of the store too. So they are in memory when the step
    looks them up: the operating system keeps what any process has read. A store at a URL is copied by the workers
    as well. That pays for a store that is larger than memory, on a slow disk, or remote. A small store is in
    memory after its first epoch anyway. What a store holds is read whole, also what the losses of a fit do not read.

    Give the same data set to the loader of the fit and, without this wrapper, to ``cache.write``.

    Args:
        dataset: The data set of which the store was written, whole and in its order: ``Subset`` and ``Indexed`` go
            around ``Prefetched``.
        path: The folder of the store, or its URL, as in ``CachedTeacher``.

    Raises:
        TypeError: If the data set has no rows by number.
        ValueError: If the store is of another number of rows, or a file of it is damaged.
        FileNotFoundError: If there is no finished store, so write it first.

    Example:
        >>> import tempfile
        >>> from torch import nn
        >>> from torch.utils.data import DataLoader, TensorDataset
        >>> from lightning_kd import cache
        >>> from lightning_kd.losses import KDLoss
        >>> data = TensorDataset(torch.randn(20, 4), torch.randint(3, (20,)))
        >>> folder = tempfile.TemporaryDirectory()
        >>> _ = cache.write(nn.Linear(4, 3), data, folder.name, losses=[KDLoss()])
        >>> loader = DataLoader(cache.Prefetched(data, folder.name), batch_size=5, shuffle=True, num_workers=2)
        >>> folder.cleanup()
    """

    def __init__(self, dataset: Dataset[Any], path: str | os.PathLike[str]) -> None:
        check_by_number("Prefetched", dataset)
        self.dataset: Any = dataset
        self.store = Store(os.fspath(path))
        self.views = self.store.manifest.views
        if len(self) * self.views != len(self.store):
            raise ValueError(
                f"Prefetched: the data set has {len(self)} samples, but {os.fspath(path)!r} holds the answers on "
                f"{len(self.store) // self.views}; give the data set of which the store was written, and put Subset "
                "around Prefetched."
            )

    @property
    def targets(self) -> torch.Tensor | None:
        """Class id of every row, ``None`` if the data set has none."""
        return targets_of(self.dataset)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        self._read([index])
        return self.dataset[index]

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        """Fetch the samples of a batch, in one go if the data set can."""
        self._read(indices)
        if hasattr(self.dataset, "__getitems__"):
            return list(self.dataset.__getitems__(indices))
        return [self.dataset[index] for index in indices]

    def _read(self, indices: Sequence[int]) -> None:
        """Read all views of some samples; which one comes is not known here."""
        rows = torch.tensor([int(index) % len(self) for index in indices])
        self.store.read_ahead((rows.unsqueeze(1) * self.views + torch.arange(self.views)).flatten())
