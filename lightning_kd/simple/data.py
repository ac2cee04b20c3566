"""Loaders of what users bring: data sets, tensors, loaders, data modules."""

import copy
import os
from collections.abc import Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass
from typing import Any, cast

from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset, default_collate

from lightning_kd.capture.networks import isolated_random_state

Data = Dataset[Any] | Tensor | tuple[Tensor, ...] | Iterable[Any] | LightningDataModule | str | os.PathLike[str]
"""A data set, a tensor of inputs or tensors (x, y), a loader, a data module, or a folder of images."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """Data as ``Trainer.fit`` takes it.

    Args:
        train: Loader of the training data, ``None`` if a data module has it.
        val: Loader of the held-out data, ``None`` without it or if a data module has it.
        module: The data module, if there is one.
        sample: Two samples as a batch, ``None`` of a stream, which a look would use up.
        told: What is said of batches, ``""`` if the user makes them.
        dataset: The training data itself, ``None`` if it is not known.
    """

    train: Iterable[Any] | None
    val: Iterable[Any] | None
    module: LightningDataModule | None
    sample: Any
    told: str
    dataset: Any = None


def load(train: Data, val: Data | None, batch_size: int) -> Loaded:
    """Make loaders of what a user brings.

    Args:
        train: The training data.
        val: The held-out data, ``None`` without it.
        batch_size: Samples a batch, where this function makes the batches.

    Raises:
        ValueError: If a data module comes with held-out data beside it, or the data has no samples.
        TypeError: If it is no kind of data that is known.
    """
    if isinstance(train, LightningDataModule):
        if val is not None:
            raise ValueError("distill: a data module has its own held-out data; leave out val.")
        train.prepare_data()
        train.setup("fit")
        loader = train.train_dataloader()
        return Loaded(None, None, train, _sample_of(loader), "", getattr(loader, "dataset", None))
    made = loader_of(train, batch_size, shuffle=True, name="train")
    held_out = None if val is None else loader_of(val, batch_size, shuffle=False, name="val")
    _check_numbering(made, held_out)
    told = f"batches of {batch_size}" if made is not train else ""
    return Loaded(made, held_out, None, _sample_of(made), told, getattr(made, "dataset", None))


def _check_numbering(train: object, val: object) -> None:
    """Raise a ``ValueError`` if two data sets that name their classes give one name two numbers."""
    numbers, others = _numbers_of(train), _numbers_of(val)
    differ = [name for name, number in numbers.items() if others.get(name, number) != number]
    if differ:
        name = differ[0]
        raise ValueError(
            f"distill: the class {name!r} has the number {numbers[name]} in train and {others[name]} in val, since one "
            "of them lacks a class. Give the folders as paths, which are numbered alike, or the held-out data with the "
            "classes of the training data."
        )


def _numbers_of(loader: object) -> dict[str, int]:
    dataset = getattr(loader, "dataset", None)
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    found = getattr(dataset, "class_to_idx", None)
    if isinstance(found, Mapping):
        return dict(found)
    classes = getattr(dataset, "classes", None)
    named = isinstance(classes, list | tuple) and all(isinstance(one, str) for one in classes)
    return {name: number for number, name in enumerate(classes)} if named and classes else {}


def loader_of(data: Data, batch_size: int, *, shuffle: bool, name: str) -> Iterable[Any]:
    """Return a loader of data, the user's own where it is one."""
    if isinstance(data, Tensor):
        data = (data,)
    if isinstance(data, tuple) and data and all(isinstance(part, Tensor) for part in data):
        if len({len(part) for part in data}) != 1:
            raise ValueError(
                f"distill: {name} has tensors of {[len(part) for part in data]} rows; give as many of each."
            )
        data = TensorDataset(*data)
    if isinstance(data, list | tuple):
        raise TypeError(
            f"distill: {name} is a {type(data).__name__} of samples or of batches, which cannot be told apart; give a "
            "data set, tensors (x, y), which torch.from_numpy makes of arrays, a DataLoader, a LightningDataModule, or "
            "the path of a folder of images."
        )
    if not isinstance(data, Dataset) and not (hasattr(data, "__getitem__") and isinstance(data, Sized)):
        if isinstance(data, Iterator):
            raise TypeError(
                f"distill: {name} is a {type(data).__name__}, which can be passed over once, and every epoch passes "
                "over the data. Give a DataLoader, or an object whose __iter__ begins anew."
            )
        if isinstance(data, Iterable):
            return data
        raise TypeError(
            f"distill: {name} is a {type(data).__name__}; give a data set, tensors (x, y), a DataLoader, a "
            "LightningDataModule, or the path of a folder of images."
        )
    if isinstance(data, IterableDataset):
        return DataLoader(data, batch_size=batch_size)
    if not len(data):  # type: ignore[arg-type]
        raise ValueError(f"distill: {name} has no samples.")
    return DataLoader(cast(Dataset[Any], data), batch_size=batch_size, shuffle=shuffle)


def _sample_of(loader: Any) -> Any:
    """Return two samples as a batch, without using anything up; ``None`` where that cannot be."""
    dataset = getattr(loader, "dataset", None)
    if dataset is None or isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__") or not len(dataset):
        return None
    collate = getattr(loader, "collate_fn", default_collate)
    rows = [0, len(dataset) - 1]
    with isolated_random_state():
        return collate([copy.copy(dataset[row]) for row in rows])
