"""One call of a network followed through all of its layers, in the order in which they run."""

from collections import Counter
from dataclasses import dataclass
from types import TracebackType

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lightning_kd.capture.networks import first_tensor, original
from lightning_kd.capture.private import version_of

_NO_SOURCE = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.Identity)


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
        self._handles: list[RemovableHandle] = []
        self._seen: list[Seen] = []

    def __enter__(self) -> "Trace":
        for name, layer in self._network.named_modules():
            if name and not isinstance(layer, _NO_SOURCE):
                self._handles.append(layer.register_forward_hook(self._hook(name)))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for handle in self._handles:
            handle.remove()

    def before(self, logits: Tensor | None) -> list[Seen]:
        """Return the layers that did not return the logits themselves, each value once, under its outermost name."""
        runs = Counter(seen.name for seen in self._seen)
        last = {(id(seen.value), seen.version): seen for seen in self._seen if runs[seen.name] == 1}
        return [seen for seen in last.values() if seen.value is not logits]

    def _hook(self, name: str) -> "_Hook":
        return _Hook(name, self._seen)


class _Hook:
    def __init__(self, name: str, seen: list[Seen]) -> None:
        self.name = name
        self.seen = seen

    def __call__(self, layer: nn.Module, args: object, output: object) -> None:
        value = first_tensor(output)
        if value is not None and value.ndim >= 2:
            self.seen.append(Seen(self.name, layer, value, version_of(value)))
