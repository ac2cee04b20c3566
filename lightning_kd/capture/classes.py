"""The names of a network's classes, and the order in which another network has them."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from lightning_kd.capture.networks import original

_REMEDY = (
    "Train both on the same classes; if they are the same in this order under other names, give both the same names "
    "({where}); or say by number which are compared: {chosen}."
)
_SHOWN = 10
"""How many numbers of classes a message writes out."""


def class_names(network: nn.Module) -> list[str] | None:
    """Return the names of a network's classes, ``None`` if it does not tell.

    Read are ``config.id2label`` of Hugging Face, unless it holds the names that are there by default (``LABEL_0``), and
    ``pretrained_cfg["label_names"]`` of timm.

    Args:
        network: The network.

    Example:
        >>> from types import SimpleNamespace
        >>> net = nn.Linear(4, 2)
        >>> net.config = SimpleNamespace(id2label={0: "cat", 1: "dog"})
        >>> class_names(net)
        ['cat', 'dog']
    """
    network = original(network)
    told = getattr(getattr(network, "config", None), "id2label", None)
    if isinstance(told, Mapping) and told:
        try:
            names = [str(told[key]) for key in sorted(told, key=int)]
        except (TypeError, ValueError):  # ids that are no numbers
            return None
        return None if names == [f"LABEL_{i}" for i in range(len(names))] else names
    config: Any = getattr(network, "pretrained_cfg", None)
    told = config.get("label_names") if isinstance(config, Mapping) else getattr(config, "label_names", None)
    return [str(name) for name in told] if isinstance(told, Sequence) and not isinstance(told, str) and told else None


def class_order(student: nn.Module, teacher: nn.Module) -> list[int] | None:
    """Return where the teacher has each class of the student, ``None`` if both agree or one of them does not tell.

    Args:
        student: The student.
        teacher: The teacher.

    Raises:
        ValueError: If both name as many classes, but not the same.
    """
    mine, its = class_names(student), class_names(teacher)
    if mine is None or its is None or len(mine) != len(its):
        return None
    mine, its = _folded(mine), _folded(its)
    if mine == its or len(set(mine)) < len(mine) or len(set(its)) < len(its):
        return None
    if set(mine) != set(its):
        only = sorted(set(mine) - set(its))[:3], sorted(set(its) - set(mine))[:3]
        where = "student.config.id2label = teacher.config.id2label"
        both = [name for name in mine if name in its]
        chosen = "teacher_classes=[...], the teacher's class for each class of the student or of student_classes=[...]"
        if 1 < len(both) <= _SHOWN:  # a single class has nothing to be compared with
            numbers = [its.index(name) for name in both], [mine.index(name) for name in both]
            chosen = f"teacher_classes={numbers[0]} with student_classes={numbers[1]}, which both have"
        raise ValueError(
            f"Student and teacher score other classes: the student alone has {only[0]}, the teacher alone {only[1]}. "
            + _REMEDY.format(where=where, chosen=chosen)
        )
    return [its.index(name) for name in mine]


def in_order(logits: Tensor, order: Tensor) -> Tensor:
    """Return logits with their classes in another order; those of another number of classes as they are.

    Example:
        >>> import torch
        >>> in_order(torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([2, 0, 1]))
        tensor([[3., 1., 2.]])
    """
    axis = logits.ndim - 1 if logits.ndim in (1, 3) else 1
    return logits.index_select(axis, order.to(logits.device)) if logits.shape[axis] == len(order) else logits


def _folded(names: Sequence[str]) -> list[str]:
    return [name.strip().casefold() for name in names]
