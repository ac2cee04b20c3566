"""Student and teacher as networks, where a user has given names, with classes that fit one another and the data."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lightning_utilities.core.rank_zero import rank_zero_info
from torch import nn

from lightning_kd.capture.classes import class_names
from lightning_kd.capture.networks import isolated_random_state, num_parameters
from lightning_kd.data.indexed import targets_of
from lightning_kd.losses.base import DistillationLoss
from lightning_kd.named import fresh, pretrained
from lightning_kd.named.names import parse
from lightning_kd.named.networks import check
from lightning_kd.named.wanted import classes_of
from lightning_kd.teachers.base import Teacher

_SHOWN = 5


@dataclass(slots=True)
class Pair:
    """Two networks, and what is said of them.

    Args:
        student: The student.
        teacher: The teacher.
        by_name: Whether one of them was given by name.
        teacher_classes: The teacher's class for each class of the student, ``None`` if they are the same.
        compares: Whether a loss compares the teacher's answers, not only its layers.
        told: What was said, a line each.
        its: How many classes the teacher has, ``None`` if that is not known.
        of_imagenet: Whether the teacher is one whose weights are of a large public task, and not of the user's.
    """

    student: nn.Module
    teacher: nn.Module | Teacher
    by_name: bool
    teacher_classes: list[int] | None
    compares: bool
    told: list[str]
    its: int | None = None
    of_imagenet: bool = False

    @property
    def network(self) -> nn.Module | None:
        """The teacher's network, ``None`` if there is none."""
        return self.teacher if isinstance(self.teacher, nn.Module) else self.teacher.module


@dataclass(frozen=True, slots=True)
class Labels:
    """What is known of the classes of the training data.

    Args:
        number: How many classes there are, ``None`` if it is not known or no label is read.
        names: Their names, ``None`` if they have none.
        exact: Whether there are so many, or at least so many by the labels that occur.
        there: Whether there are labels that are read, ``None`` if that is not known.
    """

    number: int | None = None
    names: Sequence[str] | None = None
    exact: bool = False
    there: bool | None = None


def labels_of(dataset: Any, *, there: bool | None) -> Labels:
    """Return what a data set tells of its classes without reading a sample.

    Args:
        dataset: The data set, ``None`` if it is not known.
        there: Whether there are labels that are read, ``None`` if that is not known.

    Example:
        >>> from torch.utils.data import TensorDataset
        >>> labels_of(TensorDataset(torch.zeros(3, 2), torch.tensor([0, 4, 1])), there=True).number
        5
    """
    if there is False or dataset is None:
        return Labels(there=there)
    names = getattr(dataset, "classes", None)  # of a folder, and of torchvision's data sets
    if isinstance(names, Sequence) and not isinstance(names, str) and names:
        return Labels(len(names), [str(name) for name in names], exact=True, there=there)
    found = targets_of(dataset)
    return Labels(None if found is None or not len(found) else int(found.max()) + 1, there=there)


def make_pair(
    student: nn.Module | str,
    teacher: nn.Module | Teacher | str,
    labels: Labels,
    losses: Sequence[DistillationLoss] | None,
    teacher_classes: Sequence[int] | None,
    scores_of: Callable[[nn.Module], int | None],
    seed: int,
) -> Pair:
    """Make the networks that were given by name.

    Args:
        student: A network, or a name; gets as many classes as the data has, or else as many as the teacher.
        teacher: A network, a ``Teacher`` of another kind, or a name.
        labels: What is known of the data's classes.
        losses: The user's losses, ``None`` if they are left open.
        teacher_classes: The teacher's class for each of the student's, as the user gave it.
        scores_of: Returns how many classes a network scores on the first samples, ``None`` if that is not known.
        seed: Where the student's random weights begin.

    Raises:
        ValueError: If the teacher has other classes than the data, and a loss compares them; or if the number of
            classes cannot be told.
    """
    told: list[str] = []
    by_name = [one for one in (student, teacher) if isinstance(one, str)]
    # both names are checked before either network is loaded, which may take minutes
    for given, needs_weights in ((student, False), (teacher, True)):
        if isinstance(given, str):
            check(given, weights=needs_weights)
    guide = _pretrained(teacher, told) if isinstance(teacher, str) else teacher
    network = guide if isinstance(guide, nn.Module) else guide.module
    compares = losses is None or any(leaf.needs_teacher_logits for loss in losses for _, leaf in loss.leaves())
    chosen = None if teacher_classes is None else list(teacher_classes)
    pair = Pair(nn.Identity(), guide, bool(by_name), chosen, compares, told)
    pair.of_imagenet = isinstance(teacher, str) and parse(teacher).library != "hf"
    if chosen is None and compares and network is not None and labels.names is not None:
        pair.teacher_classes = _by_names(network, labels.names, told, some=bool(by_name))
    if not by_name:
        assert isinstance(student, nn.Module), "else it would be a name"
        pair.student = student
        return pair
    pair.its = classes_of(network)
    if pair.its is None and network is not None and isinstance(student, str):
        pair.its = scores_of(network)
    if compares:
        of_another_task = isinstance(teacher, str) and isinstance(student, str)
        _check(pair, labels, of_another_task=of_another_task)
    pair.student = _fresh(student, pair, labels, seed) if isinstance(student, str) else student
    return pair


def check_scores(pair: Pair, scores: int | None, labels: Labels) -> list[str]:
    """Check that a student has as many classes as the data, and as a teacher by name where these are compared.

    Args:
        pair: The networks.
        scores: How many classes the student scores, ``None`` if that is not known.
        labels: What is known of the data's classes.

    Returns:
        What was said.

    Raises:
        ValueError: If it has others.
    """
    if scores is None:
        return []
    if pair.compares and pair.teacher_classes is None and pair.its is not None and scores != pair.its:
        raise ValueError(_OTHER.format(its=pair.its, whose="the student", number=scores, hint="", more=""))
    if not labels.exact or labels.number is None or scores == labels.number:
        return []
    if scores < labels.number:
        raise ValueError(f"distill: the student scores {scores} classes, but the data has {labels.number}.")
    told: list[str] = []
    _tell(told, f"The student scores {scores} classes, and the data has {labels.number}; the others do not occur.")
    return told


_OTHER = (
    "distill: the teacher has {its} classes, {whose} {number}, so their answers cannot be compared, and a new head "
    "would answer at random. Learn from its layers alone, losses=[HintLoss()]; or name its class for each of yours, "
    "teacher_classes=[...]{hint}; or train the teacher on your classes first.{more}"
)
_MORE = (
    " If these are its classes, of which some do not occur, make the student: lightning_kd.named.fresh(NAME, "
    "classes={its})."
)
_ASK = (
    "distill: how many classes {student!r} is to have cannot be told from the data and the teacher. Make it, and give "
    "that: student=lightning_kd.named.fresh({student!r}, classes=...)."
)


def _check(pair: Pair, labels: Labels, *, of_another_task: bool) -> None:
    """Refuse a teacher of other classes than the data's.

    Args:
        pair: The teacher, and the classes of it that are read.
        labels: The classes of the data.
        of_another_task: Whether a teacher with more classes than occur in the data was trained for other ones. A
            teacher of the user's own may know classes that do not occur.
    """
    its, number, chosen = pair.its, labels.number, pair.teacher_classes
    if its == 0:
        raise ValueError(
            "distill: the teacher has no head for classes, and returns features. Give losses=[...] that read layers, "
            "such as HintLoss() or EmbeddingLoss()."
        )
    if number is None:
        return
    have = its if chosen is None else len(chosen)
    fits = have is None or have == number or (not labels.exact and have > number and not of_another_task)
    if chosen is not None and have != number and (labels.exact or len(chosen) < number):
        raise ValueError(
            f"distill: teacher_classes names {len(chosen)} classes, but the data has {number}; name one of the teacher "
            "for each, in the data's order."
        )
    if chosen is None and not fits:
        numbers = [int(name) for name in labels.names or () if name.isascii() and name.isdigit()]
        hint = ""
        if its is not None and numbers and len(numbers) == number and max(numbers) < its:
            shown = str(numbers) if len(numbers) <= _SHOWN else f"[{numbers[0]}, {numbers[1]}, ...]"
            hint = f" (such as {shown}, if the names of your classes are its numbers)"
        more = "" if labels.exact else _MORE.format(its=its)
        raise ValueError(_OTHER.format(its=its, whose="the data", number=number, hint=hint, more=more))


def _by_names(network: nn.Module, names: Sequence[str], told: list[str], *, some: bool) -> list[int] | None:
    """Return the teacher's class for each class of the data, found by its name; ``None`` if the order is the same.

    Args:
        network: The teacher's network.
        names: The names of the data's classes.
        told: Gets what is said.
        some: Whether the data may have only some of the teacher's classes; a student of the user's own may score all.
    """
    its = class_names(network)
    if its is None or (len(its) != len(names) and not some):
        return None
    places: dict[str, set[int]] = {}
    for number, name in enumerate(its):  # ImageNet's names are several words for one class, with commas
        for word in {name, *name.split(",")}:
            places.setdefault(_folded(word), set()).add(number)
    found = [places.get(_folded(name), set()) for name in names]
    if all(len(one) == 1 for one in found) and len(set.union(*found)) == len(names):
        order = [number for one in found for number in one]
        if order == list(range(len(its))):
            return None
        pairs = [f"{name!r} = {number}" for name, number in zip(names, order, strict=True)]
        more = ", ..." if len(pairs) > _SHOWN else ""
        _tell(told, f"Classes of the teacher, found by name: {', '.join(pairs[:_SHOWN])}{more}.")
        return order
    if len(its) == len(names):
        _tell(
            told,
            f"The teacher calls its classes {its[:2]} ..., the data {list(names[:2])} ...; they are compared in this "
            "order. If that is not the teacher's, give teacher_classes=[...].",
        )
    return None


def _pretrained(name: str, told: list[str]) -> nn.Module:
    _tell([], f"Loading the teacher {name} with its pretrained weights ...")  # importing a library takes seconds
    with isolated_random_state():
        made = pretrained(name)
    _tell(told, f"Teacher: {name}, pretrained, {num_parameters(made):,} parameters.")
    return made


def _fresh(name: str, pair: Pair, labels: Labels, seed: int) -> nn.Module:
    number, names = labels.number, labels.names
    if pair.teacher_classes is not None:
        number = len(pair.teacher_classes)
    elif pair.compares and pair.its is not None:
        number = pair.its  # as many as the data has, or more where not all of them occur
        names = None if names is None or len(names) != number else names
    other_task = number is not None and labels.number is None and labels.there is not False and pair.of_imagenet
    if other_task or (number is None and parse(name).library != "hf"):  # a configuration tells how many classes
        raise ValueError(_ASK.format(student=name))
    _tell([], f"Making the student {name} ...")
    with isolated_random_state():
        torch.manual_seed(seed)
        made = fresh(name, number, names)
    of = "" if number is None else f" {number} classes,"
    _tell(pair.told, f"Student: {name}, new weights,{of} {num_parameters(made):,} parameters.")
    return made


def _tell(told: list[str], line: str) -> None:
    told.append(line)
    rank_zero_info(line)


def _folded(name: str) -> str:
    return " ".join(name.casefold().replace("_", " ").replace("-", " ").split())
