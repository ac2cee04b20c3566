"""What a network costs: its parameters, its operations, and its time on one batch."""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

_SECONDS = 0.5
"""How long one network is timed."""
_LEAST, _MOST = 3, 50
"""How often it is called for that."""


def operations_of(call: Callable[[], object]) -> int:
    """Return the floating-point operations of a call: two for each multiplication with its addition.

    Matrix products, convolutions and attention are counted, as ``torch.utils.flop_counter`` does.

    Args:
        call: Calls the network.

    Example:
        >>> layer = torch.nn.Linear(3, 5)
        >>> operations_of(lambda: layer(torch.zeros(2, 3)))  # 2 * 2 * 3 * 5
        60
    """
    counter = FlopCounterMode(display=False)
    with counter:
        call()
    return int(counter.get_total_flops())


def seconds_of(call: Callable[[], object], device: torch.device) -> float:
    """Return the time of a call in seconds: the shortest of several, which other programs disturb least.

    Args:
        call: Calls the network.
        device: Where it runs; what waits there is waited for.
    """
    _timed(call, device)
    times: list[float] = []
    while len(times) < _LEAST or (sum(times) < _SECONDS and len(times) < _MOST):
        times.append(_timed(call, device))
    return min(times)


def _timed(call: Callable[[], Any], device: torch.device) -> float:
    _wait_for(device)
    began = time.perf_counter()
    call()
    _wait_for(device)
    return time.perf_counter() - began


def _wait_for(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
