"""The door of three lines."""

import inspect
import random
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch import Trainer
from lightning.pytorch.cli import OptimizerCallable
from lightning_utilities.core.rank_zero import rank_zero_info
from torch import Tensor, nn

from lightning_kd.capture.batch import for_student, logits_of, unpack_batch
from lightning_kd.capture.networks import device_of, undisturbed
from lightning_kd.fit.resume import random_state
from lightning_kd.losses.base import DistillationLoss
from lightning_kd.module import DistillationModule
from lightning_kd.simple.data import Data, Loaded, load
from lightning_kd.simple.defaults import Choice, TaskLoss, choose, optimizer_of
from lightning_kd.simple.result import DistillationResult
from lightning_kd.teachers.base import Teacher


def distill(
    student: nn.Module,
    teacher: nn.Module | Teacher,
    train: Data,
    val: Data | None = None,
    *,
    losses: Sequence[DistillationLoss] | None = None,
    task_loss: TaskLoss = "auto",
    task_weight: float | None = None,
    max_epochs: int = 10,
    optimizer: OptimizerCallable | None = None,
    batch_size: int = 64,
    seed: int = 0,
    **trainer_options: Any,
) -> DistillationResult:
    """Train a student with the help of a teacher, in one call.

    What is left open is chosen by the outputs of the networks and the labels, and printed: of classes ``KDLoss`` at
    temperature 4 with weight 0.9 beside the labels' cross entropy with 0.1, of values ``RegressionKDLoss`` beside the
    squared error, without labels the teacher alone. The learning rate falls to 0 along a cosine.

    The teacher, and the random states of torch, Python and NumPy, are afterwards as they were before.

    Args:
        student: The network that learns. It is trained in place.
        teacher: The trained network, or a ``Teacher`` of another kind.
        train: The training data: a data set, a tensor of inputs or tensors (x, y), a loader, or a data module.
        val: Data that is held out, for the numbers in the result.
        losses: The distillation losses; chosen if left out.
        task_loss: The task's own loss, ``None`` to leave labels out, ``"model"`` for the student's own; chosen if left
            out.
        task_weight: Its weight; chosen if left out, 1 beside losses of your own.
        max_epochs: How often the training data is passed over.
        optimizer: Makes the optimizer from the parameters; by default AdamW with a learning rate of 0.001, which falls
            along a cosine. Yours keeps its rate.
        batch_size: Samples a batch, where the data is no loader.
        seed: Where random numbers begin; the same seed gives the same student on the same machine.
        **trainer_options: Further options of Lightning's ``Trainer``; none writes files by default.

    Returns:
        The trained student, with its numbers and a report.

    Raises:
        ValueError: If what is left open cannot be told, or a loss cannot work on these networks.
        TypeError: If ``train`` or ``val`` is no kind of data that is known.

    Example:
        >>> x, y = torch.randn(64, 4), torch.randint(0, 3, (64,))
        >>> quiet = {"enable_progress_bar": False, "accelerator": "cpu"}
        >>> result = distill(nn.Linear(4, 3), nn.Linear(4, 3), (x, y), (x, y), max_epochs=2, **quiet)
        >>> sorted(result.metrics)
        ['accuracy', 'agreement', 'teacher_accuracy']
    """
    if not isinstance(student, nn.Module) or not isinstance(teacher, nn.Module | Teacher):
        wrong = teacher if isinstance(student, nn.Module) else student
        raise TypeError(f"distill: expected networks (torch.nn.Module), got a {type(wrong).__name__}: {wrong!r:.80}.")
    with _as_it_was(teacher, seed):
        data = load(train, val, batch_size)
        choice = choose(losses, task_loss, task_weight, *_look(student, data))
        own = optimizer is not None
        module = DistillationModule(
            student,
            teacher,
            choice.losses,
            task_loss=choice.task_loss,
            task_weight=choice.task_weight,
            optimizer=optimizer or optimizer_of,
            lr_scheduler=None if own else partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=max_epochs),
        )
        choices = _told(choice, data, max_epochs, own=own)
        for line in choices:
            rank_zero_info(line)
        metrics = _fit(module, data, {"max_epochs": max_epochs, **trainer_options})
    student.eval()
    return DistillationResult(student, metrics, choices, module)


def _fit(module: DistillationModule, data: Loaded, options: dict[str, Any]) -> dict[str, float]:
    quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    trainer = Trainer(**(quiet | options))
    module.student.train()
    with warnings.catch_warnings():
        # Lightning 2.6 warns of a fit without held-out data, which is no mistake here
        warnings.filterwarnings("ignore", "You defined a `validation_step` but have no `val_dataloader`")
        trainer.fit(module, data.train, data.val, datamodule=data.module)
    if not trainer.state.finished:
        raise KeyboardInterrupt
    if not sum(trainer.num_val_batches):
        return {}
    trainer.validate(module, data.val, datamodule=data.module, verbose=False)
    return dict(module.run.results)


def _look(student: nn.Module, data: Loaded) -> tuple[Tensor | None, Any]:
    """Return the student's logits of two samples and their target; nothing of a stream."""
    if data.sample is None:
        return None, None
    batch = move_data_to_device(data.sample, device_of(student))
    read = for_student(unpack_batch(batch), batch, student, with_labels=False, without=())
    with undisturbed(student), torch.no_grad():
        return logits_of(student(*read.args, **read.kwargs)), read.target


def _told(choice: Choice, data: Loaded, max_epochs: int, *, own: bool) -> list[str]:
    lines = [f"Losses: {', '.join(map(_brief, choice.losses))}."]
    if choice.task_loss is None:
        lines.append("No labels are read beside what the losses read.")
    else:
        lines.append(f"Task: {choice.task_loss} with weight {choice.task_weight:g}.")
    batches = f" in {data.told}" if data.told else ""
    rate = "" if own else ", with AdamW at a learning rate of 0.001, which falls to 0 along a cosine"
    lines.append(f"Training: {max_epochs} epochs{batches}{rate}.")
    return lines


def _brief(loss: DistillationLoss) -> str:
    """Return how a loss is made, without the options that have their defaults."""
    defaults = {name: one.default for name, one in inspect.signature(type(loss)).parameters.items()}
    given = {name: getattr(loss, name) for name in defaults if hasattr(loss, name)}
    options = [f"{name}={value!r}" for name, value in given.items() if value != defaults[name]]
    return f"{type(loss).__name__}({', '.join(options)})"


@contextmanager
def _as_it_was(teacher: nn.Module | Teacher, seed: int) -> Iterator[None]:
    """Leave the teacher's modes, and all random states, as they were; begin with a seed."""
    network = teacher if isinstance(teacher, nn.Module) else teacher.module
    modes = [] if network is None else [(part, part.training) for part in network.modules()]
    trainable = [] if network is None else [(p, p.requires_grad) for p in network.parameters()]
    before = random_state.current()
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    try:
        yield
    finally:
        random_state.restore(before)
        for part, mode in modes:
            part.training = mode
        for parameter, value in trainable:
            parameter.requires_grad_(value)
