"""The base of data modules whose images are tensors in memory."""

from abc import ABC, abstractmethod
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset

Rows = tuple[Tensor, Tensor]
"""Images and class ids."""


class InMemoryDataModule(LightningDataModule, ABC):
    """Serve images to train on in random order, and held-out images in their own order, with the row of each if wanted.

    Args:
        batch_size: Images a batch, >= 1; the last batch of an epoch may be smaller.
        with_index: Whether a batch is (x, y, index) instead of (x, y); index is the row in its part of the data.
        augment: Whether training images are changed at random, anew in every batch.
        num_workers: Processes that load data, >= 0.

    Raises:
        ValueError: If a number is out of its range.
    """

    train_set: TensorDataset
    held_out_set: TensorDataset

    def __init__(self, batch_size: int, with_index: bool, augment: bool, num_workers: int) -> None:
        super().__init__()
        name = type(self).__name__
        if batch_size < 1:
            raise ValueError(f"{name}: expected batch_size >= 1, got {batch_size}.")
        if num_workers < 0:
            raise ValueError(f"{name}: expected num_workers >= 0, got {num_workers}.")
        self.batch_size = batch_size
        self.with_index = with_index
        self.augment = augment
        self.num_workers = num_workers

    @abstractmethod
    def read(self) -> tuple[Rows, Rows]:
        """Return the images to train on and those held out."""

    def setup(self, stage: str | None = None) -> None:
        """Read both parts of the data into memory, the same for every stage."""
        if not hasattr(self, "train_set"):
            self.train_set, self.held_out_set = (self._rows(*part) for part in self.read())

    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Serve the training images in random order."""
        return self._loader(self.train_set, shuffle=True)

    def val_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Serve the held-out images."""
        return self._loader(self.held_out_set, shuffle=False)

    def test_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Serve the held-out images."""
        return self._loader(self.held_out_set, shuffle=False)

    def predict_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Serve the held-out images."""
        return self._loader(self.held_out_set, shuffle=False)

    @property
    def augments_now(self) -> bool:
        """Whether the current batch is a training batch and is to be augmented."""
        return self.augment and self.trainer is not None and self.trainer.training

    def _rows(self, images: Tensor, target: Tensor) -> TensorDataset:
        index = (torch.arange(len(target)),) if self.with_index else ()
        return TensorDataset(images, target, *index)

    def _loader(self, rows: Dataset[Any], shuffle: bool) -> DataLoader[tuple[Tensor, ...]]:
        return DataLoader(
            rows,
            batch_size=self.batch_size,
            shuffle=shuffle,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
        )
