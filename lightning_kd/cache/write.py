"""Asks a teacher about every row of a data set, and writes the answers into a store."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities import move_data_to_device
from torch import nn
from torch.utils.data import DataLoader, Dataset

from lightning_kd.cache.asker import OfStep, OfTeacher
from lightning_kd.cache.items import Format
from lightning_kd.cache.writer import Every, Writer
from lightning_kd.capture import batch as batches
from lightning_kd.capture.batch import Batch
from lightning_kd.capture.heads import Head
from lightning_kd.capture.networks import device_of
from lightning_kd.data.indexed import targets_of
from lightning_kd.data.replayed import Replayed
from lightning_kd.files.precision import Precision, dtype_of
from lightning_kd.losses.base import DistillationLoss
from lightning_kd.module import DistillationModule
from lightning_kd.teachers.base import Teacher
from lightning_kd.teachers.frozen import FrozenTeacher, as_teacher
from lightning_kd.teachers.inputs import TeacherView, described


def write(
    teacher: nn.Module | Teacher,
    dataset: Dataset[Any],
    output: str | os.PathLike[str],
    *,
    losses: Sequence[DistillationLoss],
    student: nn.Module | None = None,
    dtype: Precision | torch.dtype = "float16",
    top_k: int | None = None,
    draws: int | None = None,
    batch_size: int = 64,
    shard_rows: int | None = None,
    views: int = 1,
    collate_fn: Callable[[list[Any]], Any] | None = None,
    num_workers: int = 0,
    teacher_inputs: TeacherView | None = None,
    unpack_batch: Callable[[Any], Batch] = batches.unpack_batch,
    teacher_logits: Head = None,
    device: str | torch.device | None = None,
    rank: int = 0,
    world_size: int = 1,
) -> Path:
    """Store what the losses read of a teacher, for every row of a data set.

    Every row is read once, in order. The teacher is in eval mode, without gradients. A writer that is stopped goes on
    where it was when it is called again with the same arguments. Several processes write at once, each with its own
    ``rank``; the last one finishes the store. A teacher is known by its weights and by its answers on the first rows.

    Args:
        teacher: The teacher.
        dataset: A data set with a length and rows by number. Its samples must be the same each time that they are read;
            wrap one that augments at random in ``lightning_kd.data.Replayed``.
        output: The folder of the store; it is made if it is not there.
        losses: The losses, of which the teacher's layers are stored.
        student: The student of the fit, for losses that name no layers, which are chosen for both networks.
        dtype: Format of what is stored: float16, bfloat16 or float32.
        top_k: For logits of tokens (B, T, V): how many of the most likely are kept at each position.
        draws: For logits of tokens, in their place: how many draws out of the teacher's distribution.
        batch_size: How many rows the teacher is asked about at once.
        shard_rows: How many rows a file holds; by default as many as take 256 MiB.
        views: Number of views of each sample, of a data set that augments; it is read as ``Replayed(dataset, views)``.
        collate_fn: Makes a batch of samples, as that of the training loader.
        num_workers: How many processes read the data.
        teacher_inputs: Another view of the batch for the teacher, as in the fit.
        unpack_batch: Takes a batch apart, as in the fit.
        teacher_logits: Which of several outputs of the teacher is the one that the fit's ``teacher_logits`` names, or
            its ``logits``. Outputs that losses read by name are stored besides.
        device: Where the teacher runs; by default where it is.
        rank: Number of this process.
        world_size: How many processes write.

    Returns:
        The folder.

    Raises:
        TypeError: If the data set has no rows by number.
        ValueError: If a loss names no layers, the samples change from one reading to the next, an answer is not finite
            or does not fit the format, an input of a whole batch is another in a later batch, or the folder holds
            another store, or that of a teacher that answers otherwise on the first rows.
        OSError: If the disk has not room enough; nothing has been written then.

    Example:
        >>> import tempfile
        >>> from torch.utils.data import TensorDataset
        >>> from lightning_kd.losses import KDLoss
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     rows = TensorDataset(torch.randn(10, 4))
        ...     sorted(p.name for p in write(nn.Linear(4, 3), rows, folder, losses=[KDLoss()]).iterdir())
        ['manifest.json', 'rows.safetensors', 'shard-00000.safetensors']
    """
    frozen = as_teacher(teacher)
    if not isinstance(frozen, FrozenTeacher):
        raise ValueError(
            f"cache.write: a {type(teacher).__name__} is no network whose answers could be stored; give the network."
        )
    frozen.read_weights()
    if device is not None:
        frozen.place(torch.device(device))
    if views > 1 and not isinstance(dataset, Replayed):
        dataset = Replayed(dataset, views)
    here = device_of(frozen.module)
    options: dict[str, Any] = {
        "folder": Path(output),
        "form": Format(format_of(dtype), top_k, draws),
        "batch_size": batch_size,
        "shard_rows": shard_rows,
        "collate_fn": collate_fn,
        "num_workers": num_workers,
        "transfer": lambda batch: move_data_to_device(batch, here),
        "part": (rank, world_size),
    }
    if student is None:
        needs_logits = any(leaf.needs_teacher_logits for loss in losses for _, leaf in loss.leaves())
        asker = OfTeacher(frozen, losses, teacher_inputs, unpack_batch, teacher_logits)
        view = None if teacher_inputs is None else described(teacher_inputs)
        return Writer(asker, dataset, **options, needs_logits=needs_logits, view=view, head=teacher_logits).write()
    # a fit with a task reads the embedding before the last layer; one without reads the logits, which are stored too
    embedding = any(leaf.needs_layers and leaf.reads == "embedding" for loss in losses for _, leaf in loss.leaves())
    task = nn.CrossEntropyLoss() if embedding else None
    module = DistillationModule(
        student, frozen, losses, task_loss=task, teacher_inputs=teacher_inputs, teacher_logits=teacher_logits
    )
    if unpack_batch is not batches.unpack_batch:
        vars(module)["unpack_batch"] = unpack_batch
    return writer_of(module, dataset, **options).write()


def writer_of(module: DistillationModule, dataset: Dataset[Any], **options: Any) -> Writer:
    """Return a writer of what the losses of a module read of its teacher.

    Args:
        module: The module, whose losses are set up on the first rows.
        dataset: The data set.
        options: Those of :class:`Writer`.
    """
    run = module.run
    assert run.teacher is not None, "checked by the caller"
    run.teacher.place(device_of(module.student))
    every = Every(dataset)
    if run.objective.needs_index:
        run.setup.show_dataset(every.samples, targets_of(dataset))
    loader = DataLoader(every, batch_size=min(2, len(every)), collate_fn=options.get("collate_fn"))

    def call(batch: Any) -> Any:
        read = module.unpack_batch(batch)
        return run.step.capture.call(*read.args, **read.kwargs)

    run.setup.prepare(options["transfer"](next(iter(loader))), call, module)
    layers, given = run.setup.state()["layers"], module.plain_output_options()
    needs_logits = any(loss.needs_teacher_logits for loss in run.objective.components)
    return Writer(OfStep(run.step), dataset, **options, layers=layers, needs_logits=needs_logits, **of_options(given))


def of_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return of the options of a door what decides what its teacher answers."""
    return {"view": options.get("teacher_inputs"), "head": options.get("teacher_logits", options.get("logits"))}


def format_of(dtype: Precision | torch.dtype) -> torch.dtype:
    """Return the format of a name."""
    found = dtype_of(dtype)
    assert found is not None, "a format was given"
    return found
