"""What the output layer of a network is given, recorded before the layer runs."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


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
        self.calls = 0
        self.handle: RemovableHandle | None = layer.register_forward_pre_hook(self._hook)

    def detach(self) -> None:
        """Take the hook off."""
        if self.handle is not None:
            self.handle.remove()
        self.handle = self.value = None

    def start(self, *, thin: bool) -> None:
        """Begin to record."""
        self.records, self.thin, self.calls, self.value = True, thin, 0, None

    def stop(self) -> None:
        """End, and drop what was recorded."""
        self.records = self.thin = False
        self.value = None

    @contextmanager
    def pausing(self) -> Iterator[None]:
        """Leave calls in a block as they are, and what was recorded before them."""
        before = self.records, self.thin, self.calls, self.value
        self.records = self.thin = False
        try:
            yield
        finally:
            self.records, self.thin, self.calls, self.value = before

    def __deepcopy__(self, memo: dict[int, Any]) -> "HeadInput":
        """Give a copy of the network a hook that does nothing."""
        copied = object.__new__(HeadInput)
        copied.layer, copied.records, copied.thin, copied.value, copied.calls = self.layer, False, False, None, 0
        copied.handle = None
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


def _silent() -> HeadInput:
    return HeadInput(nn.Identity())
