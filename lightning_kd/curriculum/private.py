"""Lightning's private names that the curriculum needs, each with its reason.

Lightning 2.6 has no public name for any of them.
"""

from typing import Any, cast

from lightning.fabric.utilities.distributed import DistributedSamplerWrapper
from lightning.pytorch import LightningModule, Trainer


def restart_iterator(trainer: Trainer) -> None:
    """Make a new iterator of the training data loader.

    The fit loop makes the iterator once, before ``on_train_start``. Worker processes then draw samples from a copy of
    the sampler, which no callback can reach any more. Only ``_data_fetcher`` can make a new iterator.
    """
    iter(cast(Any, trainer.fit_loop._data_fetcher))


def wrapped_sampler(sampler: DistributedSamplerWrapper) -> object:
    """Return the sampler that Lightning has wrapped to share it out to several processes."""
    return cast(Any, sampler.dataset)._sampler


def before_transfer(module: LightningModule, batch: Any) -> Any:
    """Call ``on_before_batch_transfer`` as the loops do: of the data module, if that overrides it."""
    return module._on_before_batch_transfer(batch, dataloader_idx=0)
