"""The command ``lightning-kd cache``: a teacher's answers on a data set as a store of their own."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from lightning.pytorch import LightningDataModule

from lightning_kd.cache import verify as check_store
from lightning_kd.cache.items import Format
from lightning_kd.cache.write import format_of, writer_of
from lightning_kd.commands.building.data import loader_of, prepare_data, transferred
from lightning_kd.commands.building.fit import build
from lightning_kd.commands.parsing.fit_words import call_with_fit
from lightning_kd.files.precision import Precision
from lightning_kd.module import DistillationModule
from lightning_kd.teachers.base import Split
from lightning_kd.teachers.frozen import FrozenTeacher

Device = Literal["cpu", "cuda", "mps"]


def cache(words: list[str]) -> None:
    """Write a teacher's answers into a store.

    Args:
        words: Arguments as on the command line, after ``cache``.
    """
    call_with_fit(words, write_store, "cache")


def write_store(
    config: str | Sequence[str] | None = None,
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
        config: YAML file of the fit, with the teacher itself; or the words that follow ``lightning-kd fit``.
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
    module, data = _built(config, split)
    loader = loader_of(data, split)
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
        transfer=lambda batch: transferred(batch, data, module),
        part=(rank, world_size),
    )
    print(f"{writer.write()}: the teacher's answers on the {split} data.")


def _built(config: str | Sequence[str], split: Split) -> tuple[DistillationModule, LightningDataModule]:
    fit = build(config)
    module = fit.only("a store is written for one student's losses, and with the losses of all of them")
    if not isinstance(module.run.teacher, FrozenTeacher):
        kind = "no teacher"
        if module.run.teacher is not None:
            kind = f"a {type(module.run.teacher).__name__} as teacher"
        raise ValueError(
            f"The configuration has {kind}; the answers of a network are stored, so give the configuration with the "
            "teacher itself under model.teacher."
        )
    prepare_data(fit, split)
    return module, fit.data
