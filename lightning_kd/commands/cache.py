"""The command ``lightning-kd cache``: a teacher's answers on a data set as a store of their own."""

from pathlib import Path
from typing import Any, Literal, get_args

from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch.utils.data import DataLoader

from lightning_kd.cache import verify as check_store
from lightning_kd.cache.items import Format
from lightning_kd.cache.write import format_of, writer_of
from lightning_kd.capture.networks import device_of
from lightning_kd.commands.fit import DistillationCLI
from lightning_kd.commands.parsing.parser import call_with
from lightning_kd.files.precision import Precision
from lightning_kd.fit.students.several import SeveralStudents
from lightning_kd.module import DistillationModule
from lightning_kd.teachers.base import Split
from lightning_kd.teachers.frozen import FrozenTeacher

Device = Literal["cpu", "cuda", "mps"]


def cache(words: list[str]) -> None:
    """Write a teacher's answers into a store.

    Args:
        words: Arguments as on the command line, after ``cache``.
    """
    call_with(words, write_store, "cache")


def write_store(
    config: str | None = None,
    output: str | None = None,
    split: Split = "train",
    dtype: Precision = "float16",
    top_k: int | None = None,
    draws: int | None = None,
    batch_size: int | None = None,
    shard_rows: int | None = None,
    device: Device | None = None,
    rank: int = 0,
    world_size: int = 1,
    verify: str | None = None,
) -> None:
    """Ask the teacher of a fit about every row of its data, and store what the losses of that fit read.

    Then give the fit a teacher that looks the answers up: --model.teacher CachedTeacher --model.teacher.path DIR. A
    command that was stopped goes on where it was when it is given again.

    Args:
        config: YAML file of the fit, with the teacher itself.
        output: Folder of the store.
        split: Which data; the stores of val and test belong into the folders DIR/val and DIR/test.
        dtype: Format of what is stored.
        top_k: For logits of tokens: how many of the most likely are kept at each position.
        draws: For logits of tokens, in their place: how many draws out of the teacher's distribution.
        batch_size: How many rows the teacher is asked about at once; by default as many as a batch of the fit has.
        shard_rows: How many rows a file holds; by default as many as take 256 MiB.
        device: Where the teacher runs.
        rank: Number of this process, where several write at once.
        world_size: How many processes write.
        verify: Folder of a store; every checksum in it is computed, and nothing is written.

    Raises:
        FileNotFoundError: If there is no such configuration or store.
        ValueError: If the configuration has no teacher of its own, or the data cannot be stored by row.
    """
    if verify is not None:
        if config is not None or output is not None:
            raise ValueError("--verify reads a store and writes nothing; leave out --config and --output.")
        print(f"{verify}: {check_store(verify):,} rows, every file is as it was written.")
        return
    if config is None or output is None:
        raise ValueError("Give --config FIT.yaml and --output DIR, or --verify DIR.")
    if not Path(config).is_file():
        raise FileNotFoundError(f"There is no file {config!r}.")
    module, data = _built(config, split)
    loader = _loader(data, split)
    module.to(device or "cpu").eval()
    writer = writer_of(
        module,
        loader.dataset,
        folder=Path(output),
        form=Format(format_of(dtype), top_k, draws),
        batch_size=batch_size or loader.batch_size or 64,
        shard_rows=shard_rows,
        collate_fn=loader.collate_fn,
        num_workers=loader.num_workers,
        transfer=lambda batch: _transferred(batch, data, module),
        part=(rank, world_size),
    )
    print(f"{writer.write()}: the teacher's answers on the {split} data.")


class _Building(DistillationCLI):
    """The command line of a fit that builds everything, and does not fit."""

    def fit(self, model: LightningModule, **_: Any) -> None:
        """Do nothing, in the place of the Trainer's ``fit``."""


def _built(config: str, split: Split) -> tuple[DistillationModule, LightningDataModule]:
    cli = _Building(args=["fit", "--config", config])
    module, data = cli.model, cli.datamodule
    if isinstance(module, SeveralStudents):
        raise ValueError(
            f"{config!r} has several students; a store is written for one student's losses, so give a configuration "
            "with model.student, and with the losses of all of them."
        )
    if not isinstance(module.run.teacher, FrozenTeacher):
        kind = "no teacher" if module.run.teacher is None else f"a {type(module.run.teacher).__name__} as teacher"
        raise ValueError(
            f"{config!r} has {kind}; the answers of a network are stored, so give the configuration with the teacher "
            "itself under model.teacher."
        )
    data.trainer = module.trainer = cli.trainer
    data.prepare_data()
    data.setup("test" if split == "test" else "fit")
    # hooks of the data ask whether the Trainer trains, such as one that augments
    cli.trainer.training, cli.trainer.validating, cli.trainer.testing = (split == one for one in get_args(Split))
    return module, data


def _loader(data: LightningDataModule, split: Split) -> DataLoader[Any]:
    loader = {"train": data.train_dataloader, "val": data.val_dataloader, "test": data.test_dataloader}[split]()
    if isinstance(loader, list | tuple) and len(loader) == 1:
        loader = loader[0]
    if not isinstance(loader, DataLoader):
        raise ValueError(
            f"The {split} data is a {type(loader).__name__}, but answers are stored by row: give one DataLoader over a "
            "data set with a length."
        )
    return loader


def _transferred(batch: Any, data: LightningDataModule, module: LightningModule) -> Any:
    """Return a batch as the Trainer would bring it to the module, through the hooks of the user."""
    batch = _owner(data, module, "on_before_batch_transfer").on_before_batch_transfer(batch, 0)
    owner = _owner(data, module, "transfer_batch_to_device")
    batch = owner.transfer_batch_to_device(batch, device_of(module), 0)
    return _owner(data, module, "on_after_batch_transfer").on_after_batch_transfer(batch, 0)


def _owner(data: LightningDataModule, module: LightningModule, hook: str) -> Any:
    """Return whose hook the Trainer would call."""
    return data if is_overridden(hook, data) else module
