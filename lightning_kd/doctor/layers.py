"""Both networks layer by layer: shapes, parameters and cost in one call of each."""

from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lightning_kd.capture.networks import num_parameters
from lightning_kd.capture.trace import Ran


@dataclass(frozen=True)
class Row:
    """A layer as it ran.

    Args:
        name: Dotted name.
        kind: Name of its class.
        shape: Shape of what it returned.
        parameters: Number of its parameters.
        flops: Floating point operations of all samples, a multiplication and an addition counting as two.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    parameters: int
    flops: int


class Cost:
    """Counts the floating point operations of each module that runs inside a block.

    Args:
        networks: The networks.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
        >>> with Cost([net]) as cost:
        ...     _ = net(torch.ones(2, 3))
        >>> cost.of(net), cost.of(net[1])  # 2 samples of 3 * 4 multiplications and additions
        (48, 0)
    """

    def __init__(self, networks: list[nn.Module]) -> None:
        self._networks = networks
        self._counts: dict[nn.Module, int] = {}
        self._stack = ExitStack()

    def __enter__(self) -> "Cost":
        self._counter = self._stack.enter_context(FlopCounterMode(display=False))
        begun: list[int] = []

        def begin(*_: Any) -> None:
            begun.append(self._counter.get_total_flops())

        def end(module: nn.Module, *_: Any) -> None:
            self._counts[module] = self._counts.get(module, 0) + self._counter.get_total_flops() - begun.pop()

        for network in self._networks:
            for part in network.modules():
                self._stack.callback(part.register_forward_pre_hook(begin).remove)
                self._stack.callback(part.register_forward_hook(end).remove)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def of(self, module: nn.Module) -> int:
        """Return the operations of a module and all in it."""
        return self._counts.get(module, 0)


def rows_of(ran: Ran, cost: Cost, depth: int | None, also: Collection[str] = ()) -> list[Row]:
    """Return the layers that ran, in their order; those that ran more than once are left out, since no loss reads them.

    Args:
        ran: What ran in one call of a network.
        cost: What was counted in it.
        depth: How deep in the network a layer may lie, 1 for its own parts; ``None`` for all. Lists of blocks are no
            depth of their own, for they do not run.
        also: Names of layers that are shown however deep they lie.
    """
    return [
        Row(
            seen.name,
            type(seen.layer).__name__,
            tuple(seen.value.shape),
            num_parameters(seen.layer),
            cost.of(seen.layer),
        )
        for seen in sorted(ran.every, key=lambda seen: _place(ran.network, seen.name))
        if depth is None or seen.name in also or _depth(ran.network, seen.name) < depth
    ]


@contextmanager
def counting(*networks: nn.Module | None) -> Iterator[Cost]:
    """Count the operations of networks inside a block."""
    with Cost([network for network in networks if network is not None]) as cost:
        yield cost


def _depth(network: nn.Module, name: str) -> int:
    """Return how many modules that run a layer lies in."""
    parents = map(network.get_submodule, accumulate(name.split(".")[:-1], "{}.{}".format))
    return sum(not isinstance(parent, nn.ModuleList | nn.ModuleDict) for parent in parents)


def _place(network: nn.Module, name: str) -> list[int]:
    """Return where a module stands: outer parts before inner ones, in the order of their definition."""
    place: list[int] = []
    for part in name.split("."):
        place.append(list(dict(network.named_children())).index(part))
        network = network.get_submodule(part)
    return place
