"""Random generators of the user's own: which ones an object holds, and their states."""

import copy
import random
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lightning_kd.capture.networks import isolated_random_state

_GENERATORS = (torch.Generator, random.Random, np.random.Generator, np.random.RandomState)
_LOOKED_AT = 10_000
"""How many objects are looked at, the nearest first."""
_PASSED_OVER = frozenset(vars(nn.Module())) | {"_trainer", "_fabric"}
"""Attributes of modules that hold no generator of the user's own."""


def generators_in(thing: Any) -> list[Any]:
    """Return the random generators that an object holds, in attributes and small collections, at any depth.

    Modules inside it are passed over.

    Args:
        thing: The object.

    Returns:
        Each generator once; in the same order for an object that is made in the same way.
    """
    found: list[Any] = []
    seen: set[int] = set()
    waiting = deque([thing])
    while waiting and len(seen) < _LOOKED_AT:
        one = waiting.popleft()
        if id(one) in seen:
            continue
        seen.add(id(one))
        if isinstance(one, _GENERATORS):
            found.append(one)
        elif isinstance(one, Mapping | list | tuple | set):
            values = one.values() if isinstance(one, Mapping) else one
            waiting += islice(values, 100)
        elif not isinstance(one, type | Tensor | nn.Module) and hasattr(one, "__dict__"):
            waiting += vars(one).values()
    return found


def generators_of(networks: Iterable[nn.Module]) -> list[Any]:
    """Return the random generators that modules and their parts hold as attributes, each once.

    Args:
        networks: The modules.
    """
    found: dict[int, Any] = {}
    for part in dict.fromkeys(part for network in networks for part in network.modules()):
        own = {name: value for name, value in vars(part).items() if name not in _PASSED_OVER}
        if own:
            found.update((id(one), one) for one in generators_in(own))
    return list(found.values())


@contextmanager
def as_they_were(generators: list[Any]) -> Iterator[None]:
    """Put the states of generators back after the block.

    Example:
        >>> own = torch.Generator().manual_seed(0)
        >>> with as_they_were([own]):
        ...     first = torch.rand(1, generator=own)
        >>> bool(torch.rand(1, generator=own) == first)
        True
    """
    states = [copy.deepcopy(state_of(generator)) for generator in generators]
    try:
        yield
    finally:
        for generator, state in zip(generators, states, strict=True):
            set_state(generator, state)


@contextmanager
def drawing_nothing(module: nn.Module) -> Iterator[None]:
    """Put back after the block the random states of torch, Python and NumPy, and of generators that a module holds."""
    with isolated_random_state(), as_they_were(generators_of([module])):
        yield


def state_of(generator: Any) -> Any:
    """Return the state of a generator."""
    if isinstance(generator, torch.Generator):
        return generator.get_state()
    if isinstance(generator, np.random.Generator):
        return generator.bit_generator.state
    return generator.getstate() if isinstance(generator, random.Random) else generator.get_state(legacy=False)


def set_state(generator: Any, state: Any) -> None:
    """Put a generator in a state that :func:`state_of` has returned."""
    if isinstance(generator, np.random.Generator):
        generator.bit_generator.state = state
    elif isinstance(generator, random.Random):
        generator.setstate(state)
    else:
        generator.set_state(state)


def copy_of(generator: Any) -> Any:
    """Return a generator that draws the same."""
    return generator.clone_state() if isinstance(generator, torch.Generator) else copy.deepcopy(generator)
