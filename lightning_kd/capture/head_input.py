"""What the output layer of a network is given, recorded before the layer runs."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lightning_kd.capture.private import version_of


class HeadInput:
    """Records the hidden states that an output layer is given, and lets the layer compute one position alone.

    A network then runs as it always does, and its logits (B, 1, V) take next to no memory. Whoever needs the others
    computes them of the recorded hidden states. The hook does nothing unless it is told to.

    Args:
        layer: The output layer.

    Example:
        >>> import torch
        >>> layer = nn.Linear(3, 100)
        >>> recorded = HeadInput(layer)
        >>> recorded.records = recorded.thin = True
        >>> layer(torch.ones(2, 5, 3)).shape, recorded.value.shape
        (torch.Size([2, 1, 100]), torch.Size([2, 5, 3]))
        >>> recorded.detach()
    """

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer
        self.records = self.thin = False
        self.value: Tensor | None = None
        self.output: Tensor | None = None
        """What the layer has returned, of one position alone if it was told so."""
        self.version = 0
        """How often that had been changed in place as the layer returned it."""
        self.calls = 0
        self.handles: tuple[RemovableHandle, ...] = (
            layer.register_forward_pre_hook(self._hook),
            layer.register_forward_hook(self._after),
        )

    def detach(self) -> None:
        """Take the hooks off."""
        for handle in self.handles:
            handle.remove()
        self.handles, self.value, self.output = (), None, None

    def start(self, *, thin: bool) -> None:
        """Begin to record."""
        self.records, self.thin, self.calls, self.value, self.output = True, thin, 0, None, None

    def stop(self) -> None:
        """End, and drop what was recorded."""
        self.records = self.thin = False
        self.value = self.output = None

    @contextmanager
    def pausing(self) -> Iterator[None]:
        """Leave calls in a block as they are, and what was recorded before them."""
        before = self.records, self.thin, self.calls, self.value, self.output
        self.records = self.thin = False
        try:
            yield
        finally:
            self.records, self.thin, self.calls, self.value, self.output = before

    def __deepcopy__(self, memo: dict[int, Any]) -> "HeadInput":
        """Give a copy of the network a hook that does nothing."""
        copied = object.__new__(HeadInput)
        copied.layer, copied.records, copied.thin, copied.calls, copied.version = self.layer, False, False, 0, 0
        copied.handles, copied.value, copied.output = (), None, None
        return copied

    def __reduce__(self) -> Any:
        """Leave the recorded tensor out of a file."""
        return _silent, ()

    def _hook(self, layer: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if not self.records or not args or not isinstance(args[0], Tensor):
            return None
        self.value = args[0]
        self.calls += 1
        return (args[0][..., :1, :], *args[1:]) if self.thin and args[0].ndim == 3 else None

    def _after(self, layer: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if self.records and isinstance(output, Tensor):
            self.output, self.version = output, version_of(output)

    def returned(self, logits: Tensor) -> bool:
        """Whether logits are what the layer has returned, and nobody has changed them since."""
        return logits is self.output and version_of(logits) == self.version


def _silent() -> HeadInput:
    return HeadInput(nn.Identity())
