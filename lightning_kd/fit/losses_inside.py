"""The losses inside a user's module: there during a fit, and not in its state dict."""

from typing import Any

from torch import nn

ATTRIBUTE = "_kd"
"""Where the losses sit in the user's module during a fit, so that it moves, synchronizes and optimizes them."""


def take_out(module: nn.Module) -> nn.Module | None:
    """Take the losses out of the user's module, and return them if they were there."""
    losses: nn.Module | None = getattr(module, ATTRIBUTE, None)
    if losses is not None:
        delattr(module, ATTRIBUTE)
    return losses


def drop_losses(module: nn.Module, state: dict[str, Any], prefix: str, metadata: dict[str, Any]) -> None:
    """Leave the losses out of a state dict; the signature is that of torch's hook."""
    for key in [key for key in state if key.startswith(f"{prefix}{ATTRIBUTE}.")]:
        del state[key]


def fill_losses(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Add the losses of the module to a state dict that is about to be loaded."""
    losses = getattr(module, ATTRIBUTE, None)
    if losses is not None:
        state.update({f"{prefix}{ATTRIBUTE}.{name}": value for name, value in losses.state_dict().items()})
