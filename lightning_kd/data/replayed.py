"""Random augmentation that comes again: each sample has a fixed number of views."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, final

import numpy as np
import torch
from torch.utils.data import Dataset

from lightning_kd.data.indexed import check_by_number, targets_of


@final
class Replayed(Dataset[Any]):
    """Give each sample a fixed number of views, so that a teacher's answers on augmented samples can be stored.

    The view is drawn anew each time a sample is read, with the random state of torch, as an augmentation is. The
    augmentation of a view draws with a seed of its own, made of ``seed``, the row and the view. So view 2 of row 7 is
    the same picture in every epoch, process and run. The random states of torch, NumPy and Python are as before
    afterwards.

    Write the store of this data set, and train with it: ``lightning_kd.cache.write(teacher, Replayed(data, 4), ...)``.

    Args:
        dataset: A data set with a length and rows by number, whose samples are augmented at random by torch, NumPy's or
            Python's own random state.
        views: Number of views of each sample.
        seed: Another seed gives other views.

    Raises:
        TypeError: If the data set has no rows by number, or its views are fixed already.
        ValueError: If there is not at least one view.

    Example:
        >>> class Noisy(Dataset):
        ...     def __len__(self):
        ...         return 3
        ...     def __getitem__(self, row):
        ...         return row + torch.rand(())
        >>> data = Replayed(Noisy(), views=2)
        >>> data.view(1, 0) == data.view(1, 0), data.view(1, 0) == data.view(1, 1)
        (tensor(True), tensor(False))
    """

    def __init__(self, dataset: Dataset[Any], views: int, seed: int = 0) -> None:
        check_by_number("Replayed", dataset)
        if isinstance(dataset, Replayed):
            raise TypeError("Replayed: the views of the data set are fixed already.")
        if views < 1:
            raise ValueError(f"Replayed: expected views >= 1, got {views}.")
        self.dataset: Any = dataset
        self.views = views
        self.seed = seed

    @property
    def targets(self) -> torch.Tensor | None:
        """Class id of every row, ``None`` if the data set has none."""
        return targets_of(self.dataset)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        return self.view(index, int(torch.randint(self.views, ())))

    def view(self, index: int, view: int) -> Any:
        """Return one view of a sample.

        Args:
            index: The row of the sample.
            view: Number of the view, from 0 on.

        Raises:
            IndexError: If there is no such view.
        """
        if not 0 <= view < self.views:
            raise IndexError(f"Replayed: there are {self.views} views, so none has the number {view}.")
        row = int(index)
        row += len(self) if row < 0 else 0
        with _seeded(self.seed, row, view):
            return self.dataset[row]


@contextmanager
def _seeded(*numbers: int) -> Iterator[None]:
    """Draw from seeds of these numbers inside the block; the random states are as before afterwards."""
    seed = int(np.random.SeedSequence([abs(number) for number in numbers]).generate_state(1, np.uint64)[0] >> 1)
    states = torch.random.get_rng_state(), np.random.get_state(), random.getstate()
    try:
        torch.default_generator.manual_seed(seed)
        np.random.seed(seed % 2**32)
        random.seed(seed)
        yield
    finally:
        torch.random.set_rng_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])
