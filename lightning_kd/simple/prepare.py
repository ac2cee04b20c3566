"""What ``distill`` makes of names and folders before it chooses losses: networks, data, and the teacher's view."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lightning.fabric.utilities import move_data_to_device
from lightning_utilities.core.rank_zero import rank_zero_info
from torch import Tensor, nn

from lightning_kd.capture.batch import for_student, logits_of, unpack_batch
from lightning_kd.capture.networks import device_of, undisturbed
from lightning_kd.losses.base import DistillationLoss
from lightning_kd.simple.data import Data, Loaded, load
from lightning_kd.simple.images import folder_of, form_of, images_of, teacher_view
from lightning_kd.simple.pair import Pair, check_scores, labels_of, make_pair
from lightning_kd.teachers.base import Teacher
from lightning_kd.teachers.inputs import TeacherView

_SHOWN = 200
"""Letters of a network's own error that are shown."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """All that is trained with.

    Args:
        pair: The networks.
        data: The data.
        view: What makes the teacher's inputs, ``None`` if they are the student's.
        logits: The student's logits of two samples, ``None`` of a stream.
        target: Their target, ``None`` without one.
        told: What was said, a line each.
    """

    pair: Pair
    data: Loaded
    view: TeacherView | None
    logits: Tensor | None
    target: Any
    told: list[str]


def prepare(
    student: nn.Module | str,
    teacher: nn.Module | Teacher | str,
    train: Data,
    val: Data | None,
    *,
    losses: Sequence[DistillationLoss] | None,
    read_labels: bool,
    teacher_classes: Sequence[int] | None,
    teacher_inputs: TeacherView | None,
    batch_size: int,
    seed: int,
) -> Prepared:
    """Make networks of names and data of folders; takes what ``distill`` takes.

    Args:
        student: A network or a name.
        teacher: A network, a ``Teacher`` of another kind, or a name.
        train: The training data, or a folder of images.
        val: The held-out data, or a folder of images.
        losses: The user's losses, ``None`` if they are left open.
        read_labels: Whether labels are read where there are some.
        teacher_classes: The teacher's class for each of the student's.
        teacher_inputs: The user's view for the teacher; by default what both networks tell.
        batch_size: Samples a batch, where the data is no loader.
        seed: Where the weights of a student by name begin.

    Raises:
        ValueError: If the parts do not fit one another.
    """
    folders = {"train": folder_of(train)}
    folders["val"] = folder_of(val, folders["train"])
    told = [
        line
        for given, made in zip((train, val), folders.values(), strict=True)
        if made is not given
        for line in made.files.told
    ]
    form = form_of(_network(student), _network(teacher), images_of(folders["train"]))
    data = _loaded(folders, train, val, form, batch_size)
    there = None if data.sample is None else read_labels and unpack_batch(data.sample).target is not None
    labels = labels_of(data.dataset, there=there)

    def scores_of(network: nn.Module) -> int | None:
        return _classes(look(network, data.sample)[0])

    pair = make_pair(student, teacher, labels, losses, teacher_classes, scores_of, seed)
    told += pair.told
    if folders["train"] is not train:
        form = form_of(pair.student, pair.network, images_of(folders["train"]))
        data = _loaded(folders, train, val, form, batch_size)
        rank_zero_info(form.told)
        told.append(form.told)
    images = images_of(data.dataset)
    view = teacher_inputs
    if view is None and (pair.by_name or images is not None):
        view = teacher_view(pair.student, pair.network, data.sample, images, told, by_name=isinstance(teacher, str))
    logits, target = look(pair.student, data.sample, explained=pair.by_name or images is not None)
    told += check_scores(pair, _classes(logits), labels)
    return Prepared(pair, data, view, logits, target, told)


def look(network: nn.Module, sample: Any, *, explained: bool = True) -> tuple[Tensor | None, Any]:
    """Return a network's logits of two samples and their target; nothing of a stream.

    Args:
        network: The network, which is left as it is.
        sample: Two samples as a batch, ``None`` of a stream.
        explained: Whether an error of the network is told as one of the size or the colours of images.

    Raises:
        ValueError: If the network cannot take the images.
    """
    if sample is None:
        return None, None
    batch = move_data_to_device(sample, device_of(network))
    read = for_student(unpack_batch(batch), batch, network, with_labels=False, without=())
    with undisturbed(network), torch.no_grad():
        try:
            return logits_of(network(*read.args, **read.kwargs)), read.target
        except (RuntimeError, AssertionError, ValueError) as error:
            image = next((one for one in (*read.args, *read.kwargs.values()) if isinstance(one, Tensor)), None)
            if not explained or image is None or image.ndim != 4:
                raise
            said = " ".join(str(error).split())[:_SHOWN].rstrip(".")
            raise ValueError(
                f"distill: {type(network).__name__} does not take images of shape {tuple(image.shape[1:])}: {said}. "
                "Give images as it wants them, such as train=lightning_kd.data.ImageFolder(folder, size=..., mean=..., "
                "std=...), or build a network for these."
            ) from None


def _loaded(folders: dict[str, Any], train: Any, val: Any, form: Any, batch_size: int) -> Loaded:
    """Return loaders of the data; the images of folders that were given by path in a form, others as they are."""
    given = {"train": train, "val": val}
    ready = {}
    for role, made in folders.items():
        by_path = made is not given[role]
        ready[role] = form.of(made, "crop" if role == "train" else "none") if by_path else made
    own = images_of(train)
    if folders["val"] is not val and own is not None:  # as the user reads the training images
        ready["val"] = folders["val"].seen_as(size=own.size, mean=own.mean, std=own.std, augment="none")
    return load(ready["train"], ready["val"], batch_size)


def _network(given: Any) -> nn.Module | None:
    if isinstance(given, Teacher):
        return given.module
    return given if isinstance(given, nn.Module) else None


def _classes(logits: Tensor | None) -> int | None:
    """Return how many classes logits (B, C) or (B, C, H, W) score."""
    return logits.shape[1] if logits is not None and logits.ndim in (2, 4) else None
