"""An optimizer that was made of a submodule's parameters, and lacks those of the losses."""

from collections.abc import Mapping, Sequence
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning_utilities.core.rank_zero import rank_zero_info
from torch import nn
from torch.optim import Optimizer

_REMEDY = (
    "Give the optimizer all parameters in configure_optimizers: use self.parameters() in place of a submodule's, which "
    "holds those of the losses too."
)


def join_optimizer(optimizers: Sequence[Optimizer], parameters: Mapping[str, nn.Parameter]) -> None:
    """Let the parameters that no optimizer holds join one of its groups.

    They join a group and make none, because learning rate schedules have counted the groups by now; parameters they
    do not count, and an optimizer makes the state of a parameter when its first gradient comes. Of several groups they
    join that with the highest learning rate, where new layers are put, and of equal ones the largest.

    Args:
        optimizers: The optimizers of a fit that has not begun.
        parameters: The trainable parameters by name.

    Raises:
        MisconfigurationException: If the optimizer lays out its parameters when it is made.

    Example:
        >>> import torch
        >>> student, projector = nn.Linear(2, 2), nn.Linear(2, 3)
        >>> optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
        >>> join_optimizer([optimizer], dict(projector.named_parameters()))
        >>> [len(group["params"]) for group in optimizer.param_groups]
        [4]
    """
    held = {id(p) for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}
    missing = {name: parameter for name, parameter in parameters.items() if id(parameter) not in held}
    if not missing or not held:
        return
    (optimizer,) = optimizers  # automatic optimization has one
    if optimizer.state or type(optimizer).add_param_group is not Optimizer.add_param_group:
        raise MisconfigurationException(
            f"The parameters {list(missing)} of the distillation losses are in no optimizer, and "
            f"{type(optimizer).__name__} takes none after it is made. {_REMEDY}"
        )
    groups = optimizer.param_groups
    position = max(range(len(groups)), key=lambda i: _learning_rate_and_size(groups[i]))
    group = groups[position]
    named = "param_names" in group
    optimizer.add_param_group({"params": list(missing.items() if named else missing.values())})  # which checks them
    added = groups.pop()
    for key in ("params", "param_names")[: 1 + named]:
        group[key] += added[key]
    if len(groups) > 1:
        rank_zero_info(
            f"The parameters {list(missing)} of the distillation losses join the optimizer's group "
            f"{position} of {len(groups)}, counted from 0."
        )


def _learning_rate_and_size(group: dict[str, Any]) -> tuple[float, int]:
    return float(group.get("initial_lr", group["lr"])), sum(parameter.numel() for parameter in group["params"])
