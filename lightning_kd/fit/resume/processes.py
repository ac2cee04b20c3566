"""State that each process of a run has for itself, in the one checkpoint that they share."""

from collections.abc import Sequence
from typing import Any, TypeVar

import torch.distributed as dist

from lightning_kd.distributed.gather import is_distributed

T = TypeVar("T")


def gather(state: T) -> list[T]:
    """Return the state of each process, in order; every process must call this.

    Args:
        state: The state of this process, as plain data.
    """
    if not is_distributed():
        return [state]
    states: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(states, state)
    return states


def mine(states: Sequence[T]) -> T | None:
    """Return this process's state, ``None`` if the states are of another number of processes."""
    rank, world_size = (dist.get_rank(), dist.get_world_size()) if is_distributed() else (0, 1)
    return states[rank] if len(states) == world_size else None
