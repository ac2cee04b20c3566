"""Whether the teacher sees inputs in the range that it was trained on."""

from types import TracebackType
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lightning_kd.capture.networks import original
from lightning_kd.doctor.findings import Finding
from lightning_kd.engine.input_scale import REMEDY, Spread, in_words, is_trained

_FAR = 3.0
"""From which factor on many samples are of another scale: images of 0..1 that were not normalised have 4."""


class InputWatch:
    """Looks inside the block at what the first batch normalisation of a network is given.

    Args:
        network: The network, ``None`` if there is none to look at.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.BatchNorm1d(1), nn.ReLU())
        >>> for _ in range(100):
        ...     _ = net(torch.randn(64, 1))
        >>> with InputWatch(net.eval()) as watch:
        ...     _ = net(255 * torch.randn(64, 1))
        >>> watch.finding().name
        'scale of the inputs'
    """

    def __init__(self, network: nn.Module | None) -> None:
        self._network = network
        self._handles: list[RemovableHandle] = []
        self._first: tuple[str, Spread] | None = None

    def __enter__(self) -> "InputWatch":
        """Begin to look."""
        for name, module in () if self._network is None else original(self._network).named_modules():
            if is_trained(module):
                self._handles.append(module.register_forward_pre_hook(self._looking(name)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Look no more."""
        for handle in self._handles:
            handle.remove()

    def _looking(self, name: str) -> Any:
        def look(module: nn.Module, args: tuple[Any, ...]) -> None:
            if args and isinstance(args[0], Tensor) and args[0].ndim > 1:
                self._first = self._first or (name, Spread(module))
                if self._first[1].norm is module:
                    self._first[1].add(args[0])

        return look

    def finding(self) -> Finding | None:
        """Return what to say of the scale of the inputs, ``None`` if nothing is wrong as far as can be seen."""
        if self._first is None:
            return None
        name, spread = self._first
        far, width = spread.deviations(), spread.width()
        if far > _FAR:
            return Finding("scale of the inputs", in_words(name, far), REMEDY)
        if width < 1 / _FAR:
            return Finding(
                "scale of the inputs",
                f"The teacher's first batch normalisation {name!r} is given values that vary only {width:.3g} times as "
                "much as in the teacher's training.",
                REMEDY,
            )
        return None
