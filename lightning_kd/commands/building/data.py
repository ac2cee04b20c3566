"""The data of a fit, read as its Trainer would, without one."""

from typing import Any, get_args

from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch.utils.data import DataLoader

from lightning_kd.capture.networks import device_of
from lightning_kd.commands.building.fit import Built
from lightning_kd.teachers.base import Split


def prepare_data(fit: Built, split: Split) -> None:
    """Prepare the data of a fit, whose hooks may ask whether the Trainer trains, such as one that augments.

    Args:
        fit: The fit.
        split: Which data will be read.
    """
    fit.data.trainer = fit.module.trainer = fit.trainer
    fit.data.prepare_data()
    fit.data.setup("test" if split == "test" else "fit")
    fit.trainer.training, fit.trainer.validating, fit.trainer.testing = (split == one for one in get_args(Split))


def loader_of(data: LightningDataModule, split: Split) -> DataLoader[Any]:
    """Return the one loader of a split.

    Args:
        data: The data, prepared.
        split: Which data.

    Raises:
        ValueError: If there are several loaders, or none over rows.
    """
    loader = {"train": data.train_dataloader, "val": data.val_dataloader, "test": data.test_dataloader}[split]()
    if isinstance(loader, list | tuple) and len(loader) == 1:
        loader = loader[0]
    if not isinstance(loader, DataLoader):
        raise ValueError(
            f"The {split} data is a {type(loader).__name__}, but it is read by row: give one DataLoader over "
            "a data set with a length."
        )
    return loader


def transferred(batch: Any, data: LightningDataModule, module: LightningModule) -> Any:
    """Return a batch as the Trainer would bring it to the module, through the hooks of the user."""
    batch = _owner(data, module, "on_before_batch_transfer").on_before_batch_transfer(batch, 0)
    owner = _owner(data, module, "transfer_batch_to_device")
    batch = owner.transfer_batch_to_device(batch, device_of(module), 0)
    return _owner(data, module, "on_after_batch_transfer").on_after_batch_transfer(batch, 0)


def _owner(data: LightningDataModule, module: LightningModule, hook: str) -> Any:
    """Return whose hook the Trainer would call."""
    return data if is_overridden(hook, data) else module
