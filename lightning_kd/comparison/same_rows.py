"""The same rows in every arm: the data as the user has it, set up from a seed, with what an arm needs beside it."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, seed_everything
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch.utils.data import DataLoader, IterableDataset, RandomSampler, SequentialSampler, Subset

from lightning_kd.data.indexed import Indexed


class SameRows(LightningDataModule):
    """Serve the rows of a data module, which are the same for each fit of a seed.

    Args:
        data: The data module.
        seed: Where random numbers begin when the data is set up, such as for a random split.
        with_index: Whether each sample gets its row, for losses with a memory; samples that have it stay as they are.
        held_out: Fraction of the training rows that is left out of the training and served as validation data, 0..1;
            ``None`` for the validation data itself.

    Raises:
        ValueError: When a loader is asked for, if rows are to be chosen or numbered and the data is no ordinary
            ``DataLoader`` over rows.

    Example:
        >>> from lightning_kd.data import DigitsDataModule
        >>> rows = SameRows(DigitsDataModule(), held_out=0.2)
        >>> rows.setup("fit")
        >>> len(rows.train_dataloader().dataset), len(rows.val_dataloader().dataset)
        (718, 180)
    """

    def __init__(
        self, data: LightningDataModule, seed: int = 0, with_index: bool = False, held_out: float | None = None
    ) -> None:
        super().__init__()
        if held_out is not None and not 0.0 < held_out < 1.0:
            raise ValueError(f"SameRows: expected held_out between 0 and 1, got {held_out}.")
        self.data = data
        self.seed = seed
        self.with_index = with_index
        self.held_out = held_out

    def prepare_data(self) -> None:
        """Prepare the data."""
        self._tell_trainer()
        self.data.prepare_data()

    def setup(self, stage: str) -> None:
        """Set the data up, with random numbers that begin at the seed."""
        self._tell_trainer()
        seed_everything(self.seed, verbose=False)
        self.data.setup(stage)

    def teardown(self, stage: str) -> None:
        """Clean up after a stage."""
        self.data.teardown(stage)

    def train_dataloader(self) -> Any:
        """Serve the training rows."""
        loader = self.data.train_dataloader()
        if self.held_out is not None:
            loader = _over(loader, Subset(_rows(loader), self._split(loader)[0]))
        if self.with_index and not _has_index(_rows(loader)[0]):
            loader = _over(loader, Indexed(loader.dataset))
        return loader

    def val_dataloader(self) -> Any:
        """Serve the validation data, or the training rows that are held out."""
        if self.held_out is None:
            return self.data.val_dataloader()
        loader = self.data.train_dataloader()
        return _over(loader, Subset(_rows(loader), self._split(loader)[1]), shuffle=False)

    def test_dataloader(self) -> Any:
        """Serve the test data."""
        return self.data.test_dataloader()

    def predict_dataloader(self) -> Any:
        """Serve the data to predict on."""
        return self.data.predict_dataloader()

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Do what the data, or the module, does."""
        return self._owner("on_before_batch_transfer").on_before_batch_transfer(batch, dataloader_idx)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Do what the data, or the module, does."""
        return self._owner("transfer_batch_to_device").transfer_batch_to_device(batch, device, dataloader_idx)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Do what the data, or the module, does."""
        return self._owner("on_after_batch_transfer").on_after_batch_transfer(batch, dataloader_idx)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the data."""
        return self.data.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the state of the data."""
        self.data.load_state_dict(state_dict)

    def _owner(self, hook: str) -> Any:
        """Return whose hook the Trainer would call without this wrapper."""
        module = None if self.trainer is None else self.trainer.lightning_module
        return self.data if module is None or is_overridden(hook, self.data) else module

    def _tell_trainer(self) -> None:
        self.data.trainer = self.trainer

    def _split(self, loader: DataLoader[Any]) -> tuple[list[int], list[int]]:
        """Return the rows to train on and those held out, the same for every seed of a run."""
        count = len(_rows(loader))
        order = torch.randperm(count, generator=torch.Generator().manual_seed(0)).tolist()
        held_out = max(1, round(count * float(self.held_out or 0.0)))
        return sorted(order[held_out:]), sorted(order[:held_out])


def _rows(loader: Any) -> Any:
    """Return the data set of an ordinary loader."""
    ordinary = (
        type(loader) is DataLoader
        and not isinstance(loader.dataset, IterableDataset)
        and type(loader.sampler) in (RandomSampler, SequentialSampler)
        and loader.batch_size is not None
    )
    if not ordinary:
        raise ValueError(
            f"The training data is a {type(loader).__name__} whose rows cannot be chosen. Rows are held out and "
            "numbered in a DataLoader over a data set with a length, with batch_size and shuffle. For a loss with a "
            "memory wrap your data set in lightning_kd.data.Indexed; in the place of --weights tuned, leave it out."
        )
    return loader.dataset


def _over(loader: DataLoader[Any], rows: Any, *, shuffle: bool | None = None) -> DataLoader[Any]:
    """Return a loader as this one over other rows."""
    return DataLoader(
        rows,
        batch_size=loader.batch_size,
        shuffle=isinstance(loader.sampler, RandomSampler) if shuffle is None else shuffle,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        drop_last=loader.drop_last if shuffle is None else False,
        timeout=loader.timeout,
        worker_init_fn=loader.worker_init_fn,
        generator=loader.generator if shuffle is None else None,
        prefetch_factor=loader.prefetch_factor,
        persistent_workers=loader.persistent_workers,
    )


def _has_index(sample: Any) -> bool:
    if isinstance(sample, Mapping):
        return bool({"index", "idx"} & set(sample))
    return isinstance(sample, Sequence) and len(sample) > 2
