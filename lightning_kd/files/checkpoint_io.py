"""Checkpoints that are written whole or not at all, and that run no code when they are read."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import Trainer
from lightning.pytorch.plugins.io.wrapper import _WrappingCheckpointIO

from lightning_kd.files.atomic import atomic_write
from lightning_kd.files.checkpoint import named, reading
from lightning_kd.files.integrity import check_records


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its target and renames it when it is complete.

    Lightning 2.6 writes a checkpoint into the folder for temporary files and moves it from there. If that folder is on
    another disk, moving is copying: a process that is killed meanwhile leaves half a checkpoint under the final name,
    which ``ckpt_path="last"`` takes for the newest. Renaming within a folder is one step of the file system. A killed
    process then leaves a hidden file ``.NAME.part`` only, which no search for checkpoints finds, and which the next
    checkpoint of that name overwrites. If the path is a URL, Lightning writes.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Write a checkpoint."""
        if storage_options is not None or "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        # ModelCheckpoint(save_last="link") names a checkpoint of the same folder by a link; to write through it would
        # replace that checkpoint
        with atomic_write(Path(path), replace_links_within=True) as file:
            torch.save(checkpoint, file)

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Callable[..., Any] | None = lambda storage, _: storage,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Read a checkpoint, by default as tensors and plain data only.

        Lightning 2.6 unpickles a file from a URL by default. It leaves a local file to torch, which reads plain data.

        Raises:
            ValueError: If the file breaks off in the middle, is damaged, or holds anything else; no code of it has
                run. The checksums of a file from a URL are not looked at.
        """
        with reading(path):
            if Path(path).is_file():
                check_records(path, named(path))
            return super().load_checkpoint(path, map_location, weights_only is None or weights_only)


def write_whole_checkpoints(trainer: Trainer) -> None:
    """Let a Trainer use :class:`AtomicCheckpointIO` in this run, unless its user chose another ``CheckpointIO``.

    The Trainer's own is back when its strategy tears ours down: after the last checkpoint, that of an exception too.
    """
    # Lightning 2.6 has no public base class of a CheckpointIO around another one, such as AsyncCheckpointIO, and the
    # setter of its property checkpoint_io does nothing once there is an inner one
    outermost = io = cast("CheckpointIO | None", trainer.strategy.checkpoint_io)
    wrapper = None
    while isinstance(io, _WrappingCheckpointIO):
        wrapper, io = io, io.checkpoint_io
    if type(io) is not TorchCheckpointIO:
        return
    if wrapper is None:
        strategy, ours = trainer.strategy, AtomicCheckpointIO()
        strategy.checkpoint_io = ours
        _after_teardown(ours, partial(setattr, strategy, "checkpoint_io", io))
    else:
        assert outermost is not None, "the wrapper is there"
        wrapper._checkpoint_io = AtomicCheckpointIO()
        _after_teardown(outermost, partial(setattr, wrapper, "_checkpoint_io", io))


def _after_teardown(io: CheckpointIO, then: Callable[[], None]) -> None:
    """Do something once, after a ``CheckpointIO`` has been torn down and its last checkpoint is written."""

    def teardown() -> None:
        del vars(io)["teardown"]
        try:
            io.teardown()
        finally:
            then()

    vars(io)["teardown"] = teardown
