"""A look at the training data before a fit: one small batch, and the rows of the data set.

The look reads nothing that the Trainer would not read, in no process in which the Trainer would not, and uses nothing
up: what the look has taken from a stream is given to the Trainer as the beginning of it, see ``streams.py``.
"""

import copy
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.connectors.data_connector import _request_dataloader
from lightning.pytorch.utilities import CombinedLoader
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, IterableDataset

from lightning_kd.capture.generators import as_they_were, copy_of, generators_in, generators_of
from lightning_kd.capture.networks import device_of, isolated_random_state
from lightning_kd.capture.rows import leaves_of
from lightning_kd.data.indexed import check_rows, targets_of
from lightning_kd.fit.patches import Patches
from lightning_kd.fit.streams import Kept, Peeked, give_back

_FAILED = (
    "To learn the sizes, a first batch of the training data is read before the fit, and that failed with {}: {}. If "
    "the Trainer can read the data all the same, set example_input_array on the module: then no data is read before "
    "the fit."
)


def train_loader(trainer: Trainer, patches: Patches) -> Any:
    """Return the training data as the user gave it, during ``setup`` of a fit.

    ``train_dataloader()`` is called once: the Trainer gets what the look has got, unless the two could differ.
    """
    # Lightning 2.6 has no public name for the loaders before the loop has set them up, nor for moving a batch as the
    # loop does
    source = trainer.fit_loop._data_source
    kept = vars(source).get("dataloader")
    if not isinstance(kept, Kept):
        kept = Kept(trainer, source, _request_dataloader, patches)
        patches.replace(source, "dataloader", kept)
    return kept.loader


def probe_batch(trainer: Trainer, module: LightningModule, patches: Patches) -> Any:
    """Make one small batch of the training data on the student's side.

    Rows by number are read where the Trainer would read them: in this process, or by a worker that ends with the look.

    Args:
        trainer: The Trainer, during ``setup`` of a fit.
        module: The module; its batch-transfer hooks, or the data module's, are applied.
        patches: Where it is remembered what the Trainer is given back.

    Raises:
        RuntimeError: If the data cannot be read.
        ValueError: If there is no batch with samples.
    """
    loader = train_loader(trainer, patches)
    with isolated_random_state():
        try:
            batch = _first_batch(trainer, loader, patches)
        except Exception as error:
            raise RuntimeError(_FAILED.format(type(error).__name__, error)) from error
        if batch is None:
            raise ValueError("The training data has no batch with samples to learn the sizes from.")
        device = device_of(module)
        theirs = generators_of([module]) + generators_in(getattr(trainer, "datamodule", None))
        with as_they_were(theirs):  # their hooks may draw, such as for mixup
            batch = module._apply_batch_transfer_handler(
                batch, device=torch.device("cpu") if device.type == "meta" else device
            )
        return _before_conversion(batch, trainer, module)


def _before_conversion(batch: Any, trainer: Trainer, module: LightningModule) -> Any:
    """Return a batch in the format that the module has now: Lightning 2.6 converts modules after their set-up."""
    formats = {"64-true": torch.float64, "bf16-true": torch.bfloat16, "16-true": torch.float16}
    later = formats.get(str(trainer.precision))
    now = next((p.dtype for p in module.parameters() if p.is_floating_point()), later)
    if later is None or now == later:
        return batch
    return apply_to_collection(batch, Tensor, lambda tensor: tensor.to(now) if tensor.dtype == later else tensor)


def rows_and_targets(trainer: Trainer, patches: Patches) -> tuple[int, Tensor | None]:
    """Return the number of rows of the training data, and the class id of each, ``None`` if the data does not tell.

    Args:
        trainer: The Trainer, during ``setup`` of a fit.
        patches: Where it is remembered what the Trainer is given back.

    Raises:
        ValueError: If the training data is no data loader over a data set with a length, or its samples carry the rows
            of another data set.
    """
    dataset = getattr(train_loader(trainer, patches), "dataset", None)
    if dataset is None or not hasattr(dataset, "__len__"):
        raise ValueError(
            "A loss needs each sample's row, so the training data must be a DataLoader over a data set with a "
            "length; wrap yours in lightning_kd.data.Indexed."
        )
    check_rows(dataset)
    return len(dataset), targets_of(dataset)


def number_of_samples(trainer: Trainer, patches: Patches) -> int | None:
    """Return the number of samples of the training data, ``None`` if it does not tell.

    Args:
        trainer: The Trainer, during ``setup`` of a fit.
        patches: Where it is remembered what the Trainer is given back.
    """
    dataset = getattr(train_loader(trainer, patches), "dataset", None)
    return len(dataset) if dataset is not None and hasattr(dataset, "__len__") else None


def _first_batch(trainer: Trainer, loader: Any, patches: Patches) -> Any:
    if isinstance(loader, DataLoader):
        return _first(_short(trainer, loader, patches, rows=2))
    combined = loader if isinstance(loader, CombinedLoader) else CombinedLoader(loader, "max_size_cycle")
    short = copy.copy(combined)
    short.flattened = [_short(trainer, one, patches, rows=None) for one in combined.flattened]
    return _first(batch for batch, _, _ in short)


def _short(trainer: Trainer, loader: Any, patches: Patches, rows: int | None) -> Any:
    """Return an iterable of the first batch alone."""
    indices = _first_indices(loader, rows) if isinstance(loader, DataLoader) else None
    if indices is not None:
        return _rows(loader, indices)
    if isinstance(loader, Sequence):
        return loader
    peeked = Peeked(trainer, loader)
    batch = peeked.take_until(_has_samples)
    give_back(trainer.fit_loop._data_source, peeked, patches)
    return [] if batch is None else [batch]


def _first(batches: Any) -> Any:
    return next((batch for batch in batches if _has_samples(batch)), None)


def _has_samples(batch: Any) -> bool:
    first = next((leaf for leaf in leaves_of(batch) if isinstance(leaf, Tensor)), None)
    return first is None or first.ndim == 0 or len(first) > 0


def _first_indices(loader: DataLoader[Any], rows: int | None) -> list[Any] | None:
    """Return what the loader's samplers would draw first, as a list of one batch.

    A copy of the samplers draws, so that theirs, with their generators and counters, stand where they stood.

    Args:
        loader: The loader.
        rows: Number of rows at most, where the batch is made of any rows.

    Returns:
        ``None`` if the loader has no samplers, or they cannot be copied.
    """
    if isinstance(loader.dataset, IterableDataset):
        return None
    samplers = loader.sampler if loader.batch_sampler is None else loader.batch_sampler
    shared = {id(loader.dataset): loader.dataset}
    shared |= {id(generator): copy_of(generator) for generator in generators_in(samplers)}
    try:
        copied = copy.deepcopy(samplers, shared)
    except Exception:  # such as an iterator that is used for a sampler
        return None
    if type(copied) is BatchSampler:
        size = copied.batch_size if rows is None else min(rows, copied.batch_size)
        first = list(islice(copied.sampler, size))
        return [first] if first else []
    return list(islice(copied, 1))


def _rows(loader: DataLoader[Any], indices: list[Any]) -> Iterator[Any]:
    """Read rows as the loader would, in the main process or by one worker of their own."""
    short = copy.copy(loader)
    changes = {
        "batch_sampler" if loader.batch_sampler is not None else "sampler": indices,
        "num_workers": min(1, loader.num_workers),
        "persistent_workers": False,
        "pin_memory": False,
        # a generator of the loader seeds the workers
        "generator": None,
        "_iterator": None,
    }
    vars(short).update(changes)  # torch refuses some of these as attributes of a loader that is made
    with as_they_were([] if loader.num_workers else generators_in((loader.dataset, loader.collate_fn))):
        yield from iter(short)
