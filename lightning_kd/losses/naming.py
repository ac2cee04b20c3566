"""Names of losses: under which they are logged and saved."""

import re
from collections.abc import Callable, ItemsView, Iterator, KeysView, Mapping, Sequence, ValuesView
from typing import TypeVar, cast

from torch import nn

from lightning_kd.configurable import restore
from lightning_kd.losses.base import DistillationLoss

RESERVED = ("task", "loss")
T = TypeVar("T")


class NamedLosses(nn.Module):
    """The losses of a run by name, evaluated inside one call: where FSDP2 gathers the parameters that they own.

    It can be read like a dictionary. It is no ``nn.ModuleDict``, because torch 2.10 and 2.11 do not shard those, even
    if they have a forward.

    Args:
        losses: The losses by name, in order.
    """

    def __init__(self, losses: Mapping[str, DistillationLoss] | None = None) -> None:
        super().__init__()
        for name, loss in (losses or {}).items():
            self.add_module(name, loss)

    def __getitem__(self, name: str) -> DistillationLoss:
        return cast(DistillationLoss, self._modules[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._modules)

    def __len__(self) -> int:
        return len(self._modules)

    def __contains__(self, name: object) -> bool:
        return name in self._modules

    def keys(self) -> KeysView[str]:
        """Return the names of the losses, in order."""
        return self._modules.keys()

    def values(self) -> ValuesView[DistillationLoss]:
        """Return the losses, in order."""
        return cast("ValuesView[DistillationLoss]", self._modules.values())

    def items(self) -> ItemsView[str, DistillationLoss]:
        """Return the losses with their names, in order."""
        return cast("ItemsView[str, DistillationLoss]", self._modules.items())

    def forward(self, evaluate: Callable[[], T]) -> T:
        """Return what ``evaluate`` returns."""
        return evaluate()


def names_of(losses: Sequence[object]) -> list[str]:
    """Return a name for each loss, after its class: ``kd``, ``hint``, ``hint_2`` for a second.

    Args:
        losses: The losses, in order.
    """
    return names_after([type(loss).__name__ for loss in losses])


def names_after(classes: Sequence[str]) -> list[str]:
    """Return a name for each loss whose class is named, as :func:`names_of` does for the losses themselves.

    Args:
        classes: Names of the classes, in order, without their modules.

    Example:
        >>> names_after(["KDLoss", "HintLoss", "HintLoss", "MutualLearning"])
        ['kd', 'hint', 'hint_2', 'mutual_learning']
    """
    names: list[str] = []
    for class_name in classes:
        stem = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", class_name).lower()
        stem = stem.removesuffix("_loss")
        taken = [name for name in (*names, *RESERVED) if re.fullmatch(rf"{stem}(_\d+)?", name)]
        names.append(f"{stem}_{len(taken) + 1}" if taken else stem)
    return names


def name_losses(losses: Sequence[DistillationLoss | Mapping[str, object]]) -> NamedLosses:
    """Give every component the name under which it is logged and saved: ``kd``, ``hint``, ``hint_2`` for a second.

    Args:
        losses: Components, or their descriptions out of a checkpoint.

    Raises:
        ValueError: If the list is empty.
        TypeError: If an element is not a loss component.
    """
    if not losses:
        raise ValueError(
            "The list of losses is empty, so the teacher would teach nothing; pass at least one, such as "
            "losses=[KDLoss()]."
        )
    components: list[DistillationLoss] = []
    for loss in losses:
        component = restore(loss, DistillationLoss) if isinstance(loss, Mapping) else loss
        if not isinstance(component, DistillationLoss):
            raise TypeError(
                f"Expected DistillationLoss components in losses, got {type(loss).__name__}; "
                "give the task's own loss as task_loss."
            )
        if any(component is other for other in components):
            raise ValueError(f"The same {type(component).__name__} object is in losses twice; construct it twice.")
        components.append(component)
    return NamedLosses(dict(zip(names_of(components), components, strict=True)))
