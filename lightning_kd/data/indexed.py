"""Samples with their row in the data set, which losses with a memory need."""

from collections.abc import Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset, IterableDataset, Subset, TensorDataset

NO_TARGET = -100  # torch.nn.CrossEntropyLoss leaves this target out by default


@final
class Indexed(Dataset[Any]):
    """Give every sample its row in the data set: ``(x, y)`` becomes ``(x, y, index)``.

    A sample without target, ``x`` or ``(x,)``, becomes ``(x, -100, index)``, and a dictionary gains the key
    ``index``. The rows are those of the wrapped data set, so it must be the last wrapper: ``Indexed(Subset(...))``,
    not the other way round.

    Args:
        dataset: Any data set with a length and rows by number.
        targets: Class id of every row, where the samples carry other labels than ``dataset.targets``, such as after a
            ``target_transform``; by default what :func:`targets_of` finds.

    Raises:
        TypeError: If the data set has no rows by number, or is indexed already.
        ValueError: If there is not one class id for each row.

    Example:
        >>> rows = Indexed(TensorDataset(torch.tensor([0.5, 2.0]), torch.tensor([1, 0])))
        >>> rows[1]
        (tensor(2.), tensor(0), 1)
        >>> rows.targets
        tensor([1, 0])
    """

    def __init__(self, dataset: Dataset[Any], targets: Tensor | Sequence[int] | None = None) -> None:
        if isinstance(dataset, IterableDataset):
            raise TypeError(
                f"Indexed: {type(dataset).__name__} is an IterableDataset, whose samples come in no fixed rows that "
                "could be remembered from epoch to epoch; use a data set with __getitem__ and __len__."
            )
        if isinstance(dataset, Indexed):
            raise TypeError("Indexed: the data set is indexed already.")
        if not has_rows(dataset):
            raise TypeError(f"Indexed: expected a data set with __getitem__ and __len__, got {type(dataset).__name__}.")
        self.dataset: Any = dataset
        self._targets = None if targets is None else _class_ids(targets, dataset)
        if targets is not None and self._targets is None:
            raise ValueError(f"Indexed: expected targets to be one class id for each of {len(self)} rows.")

    @property
    def targets(self) -> Tensor | None:
        """Class id of every row, ``None`` if the data set has none; see :func:`targets_of`."""
        return targets_of(self.dataset) if self._targets is None else self._targets

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        row = int(index)
        return with_row(self.dataset[row], row + len(self) if row < 0 else row)

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        """Fetch the samples of a batch, in one go if the data set can."""
        if not hasattr(self.dataset, "__getitems__"):
            return [self[index] for index in indices]
        samples = self.dataset.__getitems__(indices)
        return [with_row(sample, int(index)) for sample, index in zip(samples, indices, strict=True)]


def has_rows(dataset: object) -> bool:
    """Whether a data set has a length and rows by number."""
    return hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")


def check_by_number(name: str, dataset: object) -> None:
    """Raise a ``TypeError`` unless a data set has a length and rows by number."""
    if isinstance(dataset, IterableDataset) or not has_rows(dataset):
        raise TypeError(f"{name}: expected a data set with __getitem__ and __len__, got {type(dataset).__name__}.")


def targets_of(dataset: Dataset[Any]) -> Tensor | None:
    """Find the class id of every row without reading the samples.

    It looks for an attribute ``targets`` or ``labels``, as in torchvision, takes the second tensor of a
    ``TensorDataset``, and looks into ``Subset``, ``ConcatDataset`` and ``Indexed``.

    Args:
        dataset: The data set.

    Returns:
        Integers of shape (rows,), ``None`` if there is nothing of that kind.

    Example:
        >>> rows = TensorDataset(torch.zeros(3, 2), torch.tensor([1, 0, 2]))
        >>> targets_of(Subset(rows, [2, 0]))
        tensor([2, 1])
    """
    if isinstance(dataset, Indexed):
        return dataset.targets
    found: Any = next((t for name in ("targets", "labels") if (t := getattr(dataset, name, None)) is not None), None)
    if found is None and isinstance(dataset, TensorDataset):
        found = dataset.tensors[1] if len(dataset.tensors) > 1 else None
    if found is None and isinstance(dataset, Subset):
        whole = targets_of(dataset.dataset)
        return None if whole is None else whole[torch.as_tensor(dataset.indices, dtype=torch.long)]
    if found is None and isinstance(dataset, ConcatDataset):
        parts = [targets_of(part) for part in dataset.datasets]
        known = [part for part in parts if part is not None]
        return torch.cat(known) if len(known) == len(parts) else None
    return _class_ids(found, dataset)


def check_rows(dataset: Any) -> None:
    """Check that the rows which samples carry are those of this data set, as far as its structure tells.

    Raises:
        ValueError: If an :class:`Indexed` inside it counts the rows of another data set.
    """
    inside = [] if isinstance(dataset, Indexed) else _indexed_inside(dataset)
    if inside and (len(inside) > 1 or not _keeps_rows(dataset) or len(inside[0]) != len(dataset)):
        counts = " and ".join(str(len(one)) for one in inside)
        raise ValueError(
            f"The training data is a {type(dataset).__name__} of {len(dataset)} rows around Indexed data of {counts}, "
            "so the rows that the samples carry are not its own. Indexed must be the last wrapper: "
            f"Indexed({type(dataset).__name__}(...))."
        )


def _keeps_rows(dataset: Any) -> bool:
    """Whether a wrapper may give the rows as they are: torch's own that choose or join rows do not."""
    if isinstance(dataset, Subset):
        return list(dataset.indices) == list(range(len(dataset))) and _keeps_rows(dataset.dataset)
    return not isinstance(dataset, ConcatDataset)


def _indexed_inside(dataset: Any, depth: int = 6) -> list[Indexed]:
    """Return the indexed data sets that a data set wraps, in attributes and lists."""
    found: dict[int, Indexed] = {}
    for value in getattr(dataset, "__dict__", {}).values():
        for one in value[:100] if isinstance(value, list | tuple) else [value]:
            if isinstance(one, Indexed):
                found[id(one)] = one
            elif isinstance(one, Dataset) and depth:
                found |= {id(inner): inner for inner in _indexed_inside(one, depth - 1)}
    return list(found.values())


def _class_ids(found: Any, dataset: Any) -> Tensor | None:
    if found is None:
        return None
    try:
        ids = torch.as_tensor(found)
    except (TypeError, ValueError, RuntimeError):
        return None
    ids = ids.squeeze(1) if ids.ndim == 2 and ids.shape[1] == 1 else ids
    is_class = not (ids.is_floating_point() or ids.is_complex())
    return ids.long() if is_class and ids.shape == (len(dataset),) else None


def with_row(sample: Any, row: int) -> Any:
    """Return a sample with its row, as ``Indexed`` gives it."""
    if isinstance(sample, Mapping):
        taken = [key for key in ("index", "idx") if key in sample]
        if taken:
            raise ValueError(f"Indexed: the samples have a {taken[0]!r} already; rename it, or do without Indexed.")
        return {**sample, "index": row}
    if not isinstance(sample, tuple | list):
        return sample, NO_TARGET, row
    if len(sample) == 1:
        return sample[0], NO_TARGET, row
    if len(sample) == 2:
        return sample[0], sample[1], row
    raise ValueError(
        f"Indexed: expected samples x, (x, y) or dictionaries, got {len(sample)} parts; return x as a tuple or a "
        "dictionary of the model's inputs."
    )
