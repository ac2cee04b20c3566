"""One call of a network followed through all of its layers, in the order in which they run."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from types import TracebackType

from torch import Tensor, nn

from lightning_kd.capture.followed import Followed, following
from lightning_kd.capture.networks import first_tensor, original
from lightning_kd.capture.operations import Key, Operations
from lightning_kd.capture.private import version_of

DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


@dataclass(frozen=True)
class Seen:
    """A layer that ran in the call: its name, the layer itself, and what it returned."""

    name: str
    layer: nn.Module
    value: Tensor
    version: int = 0
    """How often the value had been changed in place when the layer returned it.

    An activation that works in place returns the tensor of the layer before it, with a larger version.
    """
    hands_on: bool = False
    """Whether it returned the very tensor that it was given, as it was."""

    @property
    def key(self) -> Key:
        """What names the value at the moment when the layer returned it."""
        return id(self.value), self.version

    @property
    def drops(self) -> bool:
        """Whether the layer hands its input on in eval mode alone: dropout, and the drop paths of other libraries."""
        if isinstance(self.layer, DROPOUTS):
            return True
        bare = next(self.layer.children(), None) is None and next(self.layer.parameters(), None) is None
        return self.hands_on and bare and not type(self.layer).__module__.startswith("torch.")

    @property
    def depth(self) -> int:
        """How many modules of the network the layer lies in."""
        return self.name.count(".")


@dataclass
class Ran:
    """What ran in one call of a network; iterating yields :attr:`layers`.

    Args:
        network: The network.
        layers: The layers that did not return the output, in order, each value once, under its outermost name.
        every: The same under all of their names, with the layers that have no value of their own.
        operations: What was computed.
        followed: All module calls.
        output: The network's output, ``None`` if it has none that the losses read.
        ran_alone: The modules without parts, by what they were given and what they returned.
    """

    network: nn.Module = field(default_factory=nn.Identity)
    layers: list[Seen] = field(default_factory=list)
    every: list[Seen] = field(default_factory=list)
    operations: Operations = field(default_factory=lambda: Operations(nn.Identity()))
    followed: Followed = field(default_factory=Followed)
    output: Tensor | None = None
    ran_alone: Mapping[tuple[Key, Key], str] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Seen]:
        return iter(self.layers)


class Trace:
    """Follows one call of a network through all of its layers.

    Where a layer returns what a layer inside it returned, the outer name stands for both. Layers without a value of
    their own, such as dropout, are left out, and so are layers that run more than once.

    Args:
        network: The network that will be called inside the block.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.Sequential(nn.ReLU(), nn.Dropout()), nn.Linear(3, 4))
        >>> with Trace(net) as trace:
        ...     logits = net(torch.ones(1, 2))
        >>> [seen.name for seen in trace.before(logits)]
        ['0', '1.0', '1']
    """

    def __init__(self, network: nn.Module) -> None:
        self._network = original(network)
        self._stack = ExitStack()
        self._seen: list[Seen] = []
        self._ran_alone: dict[tuple[Key, Key], str] = {}
        self._operations = Operations(self._network)

    def __enter__(self) -> "Trace":
        for name, layer in self._network.named_modules():
            if name:
                hook = _Hook(name, self._seen, self._ran_alone)
                self._stack.callback(layer.register_forward_pre_hook(hook.look).remove)
                self._stack.callback(layer.register_forward_hook(hook).remove)
        self._followed = self._stack.enter_context(following(self._network))
        self._stack.enter_context(self._operations)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stack.close()

    def before(self, logits: Tensor | None) -> Ran:
        """Return the layers that did not return the output.

        The output in another form is left out too: what feeds it without a weight between.

        Args:
            logits: The output, made inside the block; ``None`` if there is none that the losses read.
        """
        runs = Counter(seen.name for seen in self._seen)
        output = set() if logits is None else self._operations.output_of(logits)[0]
        every = [seen for seen in self._seen if runs[seen.name] == 1 and seen.key not in output]
        layers = list(
            outermost(seen for seen in every if not (seen.drops or isinstance(seen.layer, nn.Identity))).values()
        )
        return Ran(self._network, layers, every, self._operations, self._followed, logits, self._ran_alone)


def outermost(seen: Iterable[Seen]) -> dict[Key, Seen]:
    """Return for each value the layer highest in the tree that returned it, the first of several."""
    found: dict[Key, Seen] = {}
    for one in seen:
        known = found.setdefault(one.key, one)
        if one.depth < known.depth:
            found[one.key] = one
    return found


class _Hook:
    def __init__(self, name: str, seen: list[Seen], ran_alone: dict[tuple[Key, Key], str]) -> None:
        self.name = name
        self.seen = seen
        self.ran_alone = ran_alone
        self.given: Key | None = None

    def look(self, layer: nn.Module, args: object) -> None:
        """Remember what the layer is given."""
        given = first_tensor(args)
        self.given = None if given is None else (id(given), version_of(given))

    def __call__(self, layer: nn.Module, args: object, output: object) -> None:
        value = first_tensor(output)
        if value is not None and value.ndim >= 2:
            version = version_of(value)
            self.seen.append(Seen(self.name, layer, value, version, self.given == (id(value), version)))
            if self.given is not None and next(layer.children(), None) is None:
                self.ran_alone[self.given, (id(value), version)] = self.name
