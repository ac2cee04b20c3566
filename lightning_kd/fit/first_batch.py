"""A look at the training data before a fit: one small batch, and the rows of the data set."""

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from lightning_kd.capture.networks import device_of, isolated_random_state
from lightning_kd.capture.private import tree_leaves
from lightning_kd.data.indexed import targets_of


def train_loader(trainer: Trainer) -> Any:
    """Return the training data as the user gave it, during ``setup`` of a fit."""
    if trainer.datamodule is not None:  # type: ignore[attr-defined]
        return trainer.datamodule.train_dataloader()  # type: ignore[attr-defined]
    # Lightning 2.6 has no public name for the loaders before the loop has set them up, nor for moving a batch as the
    # loop does
    return trainer.fit_loop._data_source.dataloader()


def probe_batch(trainer: Trainer, module: LightningModule) -> Any:
    """Make one small batch of the training data on the student's side, without starting workers or samplers.

    Args:
        trainer: The Trainer, during ``setup`` of a fit.
        module: The module; its batch-transfer hooks, or the data module's, are applied.
    """
    with isolated_random_state():
        loader = train_loader(trainer)
        batch = _first_samples(loader) if isinstance(loader, DataLoader) else None
        if batch is None:
            combined = loader if isinstance(loader, CombinedLoader) else CombinedLoader(loader, "max_size_cycle")
            batch = next((batch for batch, _, _ in combined if _has_samples(batch)), None)
            if batch is None:
                raise ValueError("The training data has no batch with samples to learn the sizes from.")
        device = device_of(module)
        return module._apply_batch_transfer_handler(
            batch, device=torch.device("cpu") if device.type == "meta" else device
        )


def rows_and_targets(trainer: Trainer) -> tuple[int, Tensor | None]:
    """Return the number of rows of the training data, and the class id of each, ``None`` if the data does not tell.

    Args:
        trainer: The Trainer, during ``setup`` of a fit.

    Raises:
        ValueError: If the training data is no data loader over a data set with a length.
    """
    with isolated_random_state():
        dataset = getattr(train_loader(trainer), "dataset", None)
    if dataset is None or not hasattr(dataset, "__len__"):
        raise ValueError(
            "A loss needs each sample's row, so the training data must be a DataLoader over a data set with a "
            "length; wrap yours in lightning_kd.data.Indexed."
        )
    return len(dataset), targets_of(dataset)


def _has_samples(batch: Any) -> bool:
    first = next((leaf for leaf in tree_leaves(batch) if isinstance(leaf, Tensor)), None)
    return first is None or first.ndim == 0 or len(first) > 0


def _first_samples(loader: DataLoader[Any]) -> Any:
    if isinstance(loader.dataset, IterableDataset) or loader.batch_sampler is None:
        return None
    try:
        samples = [loader.dataset[i] for i in range(2)]
    except (IndexError, KeyError, TypeError):
        return None
    return loader.collate_fn(samples)
