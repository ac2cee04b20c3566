"""What ``distill`` leaves as it was: networks that it was given, random states, and what Ctrl-C does."""

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

from lightning_kd.capture.networks import modes_of, put_in_modes
from lightning_kd.fit.resume import random_state

_SHOWN = 3


@contextmanager
def as_it_was(networks: Mapping[str, nn.Module], seed: int) -> Iterator[None]:
    """Leave networks that a user gave, and all random states, as they were; begin with a seed.

    Args:
        networks: The networks by role, ``student`` and ``teacher``. The student's weights change, and its modes are as
            before only if the block raises.
        seed: Where the random numbers of the block begin.
    """
    modes = {role: modes_of(network) for role, network in networks.items()}
    trainable = [(parameter, parameter.requires_grad) for one in networks.values() for parameter in one.parameters()]
    before = random_state.current()
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    failed = True
    try:
        yield
        failed = False
    finally:
        random_state.restore(before)
        for role, mode in modes.items():
            if role == "teacher" or failed:
                put_in_modes(mode)
        for parameter, value in trainable:
            parameter.requires_grad_(value)


def train_mode(student: nn.Module) -> str | None:
    """Put a student that is in eval mode into training mode; return what is said of it, ``None`` if nothing is.

    Parts that are in eval mode inside a student in training mode were put so on purpose, and stay so. In a student that
    is in eval mode as a whole, parts whose parameters are all frozen stay so.

    Args:
        student: The student.

    Example:
        >>> net = nn.Sequential(nn.BatchNorm1d(2).requires_grad_(False), nn.BatchNorm1d(2)).eval()
        >>> train_mode(net)
        "The student was in eval mode, and trains in training mode. Parts of it stay in eval mode: '0'."
        >>> [part.training for part in net]
        [False, True]
    """
    said = []
    if not student.training:
        said.append("The student was in eval mode, and trains in training mode.")
        student.train()
        for part in student.modules():
            if part is not student and _is_frozen(part):
                part.eval()
    names = [name for name, part in student.named_modules() if not part.training]
    if names:
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        said.append(f"Parts of it stay in eval mode: {', '.join(map(repr, names[:_SHOWN]))}{more}.")
        if len(said) == 1:
            said[0] = said[0].replace("it", "the student", 1)
    return " ".join(said) or None


def _is_frozen(part: nn.Module) -> bool:
    parameters = list(part.parameters())
    return bool(parameters) and not any(parameter.requires_grad for parameter in parameters)


@contextmanager
def stopped_by_hand() -> Iterator[None]:
    """Let Ctrl-C in a Trainer raise ``KeyboardInterrupt``; Lightning 2.6 exits with code 1 in its place."""
    try:
        yield
    except SystemExit as error:
        if not isinstance(error.__context__, KeyboardInterrupt):
            raise
        raise KeyboardInterrupt from None
