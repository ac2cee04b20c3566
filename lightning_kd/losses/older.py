"""What lets a loss go on from a checkpoint of the time when it computed something else."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn


def suit_checkpoint(losses: nn.Module, saved: Mapping[str, Any]) -> None:
    """Let losses that have changed since a checkpoint was written go on as they were, before its weights are loaded.

    A loss that has changed so has a method ``suit(saved)``, which gets its own part of the state.

    Args:
        losses: One loss, or a module that holds losses.
        saved: State of that module in the checkpoint.
    """
    for name, module in losses.named_modules():
        suit = getattr(module, "suit", None)
        if suit is not None:
            suit(own_part(saved, f"{name}." if name else ""))


def own_part(saved: Mapping[str, Any], prefix: str) -> dict[str, Tensor]:
    """Return what belongs to a module, under its own names.

    Args:
        saved: State of the whole.
        prefix: What the module's names begin with there.
    """
    return {name.removeprefix(prefix): value for name, value in saved.items() if name.startswith(prefix)}
