"""The door of three lines."""

import difflib
import inspect
import warnings
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.cli import OptimizerCallable
from lightning_utilities.core.rank_zero import rank_zero_info
from torch import nn

from lightning_kd.capture.networks import copied
from lightning_kd.doctor.callback import Doctor
from lightning_kd.losses.base import DistillationLoss
from lightning_kd.module import DistillationModule
from lightning_kd.simple.as_it_was import as_it_was, stopped_by_hand, train_mode
from lightning_kd.simple.data import Data, Loaded
from lightning_kd.simple.defaults import Choice, TaskLoss, choose, optimizer_of
from lightning_kd.simple.prepare import prepare
from lightning_kd.simple.result import DistillationResult
from lightning_kd.teachers.base import Teacher
from lightning_kd.teachers.inputs import TeacherView


def distill(
    student: nn.Module | str,
    teacher: nn.Module | Teacher | str,
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
    teacher_classes: Sequence[int] | None = None,
    teacher_inputs: TeacherView | None = None,
    **trainer_options: Any,
) -> DistillationResult:
    """Train a student with the help of a teacher, in one call.

    What is left open is chosen by the outputs of the networks and the labels, and printed: of classes ``KDLoss`` at
    temperature 4 with weight 0.9 beside the labels' cross entropy with 0.1, of values ``RegressionKDLoss`` beside the
    squared error, without labels the teacher alone. The learning rate falls to 0 along a cosine.

    Networks may be given by name: ``timm:vit_small_patch16_224``, ``torchvision:resnet50``, or ``hf:FOLDER`` of
    transformers. A teacher by name gets its pretrained weights (:func:`lightning_kd.named.pretrained`), a student by
    name new ones and as many classes as the data has, or else as the teacher (:func:`lightning_kd.named.fresh`). The
    name is the only option; for others build the network.

    Data may be the path of a folder of images (:class:`lightning_kd.data.ImageFolder`). They are read in the size and
    with the normalisation that the student wants, in training in random crops that both networks see alike. The
    teacher sees them normalised and scaled as it wants (``Renormalize``, ``Resize``). Images that you bring are taken
    to be normalised for the student, or for the teacher if the student does not tell. All this is printed.

    A teacher that has nothing to teach, such as one whose weights were not loaded, is warned of (:class:`Doctor`).
    ``callbacks=[Doctor(batches=0)]`` looks no more.

    The teacher, and the random states of torch, Python and NumPy, are afterwards as they were before. Parts of the
    student that you have frozen, or put into eval mode, stay so in training. Ctrl-C raises ``KeyboardInterrupt``.

    Args:
        student: The network that learns, or its name. A network is trained in place, and is in eval mode at the end.
        teacher: The trained network, a ``Teacher`` of another kind, or a name.
        train: The training data: a data set, a tensor of inputs or tensors (x, y), a loader, a data module, or the path
            of a folder of images.
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
        teacher_classes: The teacher's class for each class of the student, for a teacher of other classes.
        teacher_inputs: Another view of the batch for the teacher, see ``DistillationModule``; chosen if a network is
            given by name or the data by folder.
        **trainer_options: Further options of Lightning's ``Trainer``; none writes files by default.

    Returns:
        The trained student, with its numbers and a report.

    Raises:
        ValueError: If what is left open cannot be told, a loss cannot work on these networks, a name or a folder is
            none, or a teacher by name has other classes than the data.
        RuntimeError: If pretrained weights cannot be loaded.
        ImportError: If a library is not installed; names the extra.
        FileNotFoundError: If there is no such folder.
        TypeError: If ``train`` or ``val`` is no kind of data that is known, or there is no option of a name.

    Example:
        >>> x, y = torch.randn(64, 4), torch.randint(0, 3, (64,))
        >>> quiet = {"enable_progress_bar": False, "accelerator": "cpu"}
        >>> result = distill(nn.Linear(4, 3), nn.Linear(4, 3), (x, y), (x, y), max_epochs=2, **quiet)
        >>> sorted(result.metrics)
        ['accuracy', 'agreement', 'teacher_accuracy']
    """
    _check_kinds(student, teacher)
    _check_options(trainer_options)
    guide = teacher.module if isinstance(teacher, Teacher) else teacher
    networks = {"teacher": guide, "student": student}
    with as_it_was({role: one for role, one in networks.items() if isinstance(one, nn.Module)}, seed):
        ready = prepare(
            student,
            teacher,
            train,
            val,
            losses=losses,
            read_labels=task_loss is not None,
            teacher_classes=teacher_classes,
            teacher_inputs=teacher_inputs,
            batch_size=batch_size,
            seed=seed,
        )
        pair, data = ready.pair, ready.data
        choice = choose(losses, task_loss, task_weight, ready.logits, ready.target)
        own = optimizer is not None
        module = DistillationModule(
            pair.student,
            _to_round(pair.teacher, trainer_options.get("precision")),
            choice.losses,
            task_loss=choice.task_loss,
            task_weight=choice.task_weight,
            optimizer=optimizer or optimizer_of,
            lr_scheduler=None if own else partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=max_epochs),
            teacher_classes=pair.teacher_classes,
            teacher_inputs=ready.view,
        )
        of_mode = train_mode(pair.student)
        lines = [*([] if of_mode is None else [of_mode]), *_told(choice, data, max_epochs, own=own)]
        for line in lines:
            rank_zero_info(line)
        metrics = _fit(module, data, {"max_epochs": max_epochs, **trainer_options})
    pair.student.eval()
    return DistillationResult(pair.student, metrics, ready.told + lines, module)


def _check_options(given: dict[str, Any]) -> None:
    known = [*inspect.signature(distill).parameters, *inspect.signature(Trainer).parameters]
    for name in given:
        if name not in known:
            nearest = difflib.get_close_matches(name, known, n=1)
            hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
            raise TypeError(f"distill: neither distill nor Lightning's Trainer has an option {name!r}.{hint}")


def _check_kinds(student: object, teacher: object) -> None:
    kinds = ((student, nn.Module | str), (teacher, nn.Module | Teacher | str))
    wrong = [one for one, kind in kinds if not isinstance(one, kind)]
    if wrong:
        raise TypeError(
            "distill: expected networks (torch.nn.Module) or their names, such as 'timm:resnet18', got a "
            f"{type(wrong[0]).__name__}: {wrong[0]!r:.80}."
        )


def _to_round(teacher: nn.Module | Teacher, precision: object) -> nn.Module | Teacher:
    """Return a copy of a teacher whose weights the Trainer would round to 16 bits for good, else the teacher."""
    rounds = str(precision) in ("16-true", "bf16-true")
    return copied(teacher) if rounds and isinstance(teacher, nn.Module) else teacher


def _fit(module: DistillationModule, data: Loaded, options: dict[str, Any]) -> dict[str, float]:
    quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    given = options.get("callbacks") or []
    callbacks = [*given] if isinstance(given, Iterable) else [given]
    if not any(isinstance(callback, Doctor) for callback in callbacks):
        callbacks.append(Doctor())
    trainer = Trainer(**(quiet | options | {"callbacks": callbacks}))
    with warnings.catch_warnings(), stopped_by_hand():
        # Lightning 2.6 warns of a fit without held-out data. Here such data is optional.
        # It also warns of parts in eval mode. We keep them so on purpose, and have said so.
        warnings.filterwarnings("ignore", "You defined a `validation_step` but have no `val_dataloader`")
        warnings.filterwarnings("ignore", "Found .* in eval mode at the start of training")
        trainer.fit(module, data.train, data.val, datamodule=data.module)
        if not trainer.state.finished:
            raise KeyboardInterrupt
        if not sum(trainer.num_val_batches):
            return {}
        trainer.validate(module, data.val, datamodule=data.module, verbose=False)
    return dict(module.run.results)


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
