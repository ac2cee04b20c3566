"""What a network computes in one call, operation by operation: from which tensors every tensor was made."""

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from itertools import chain
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lightning_kd.capture.private import DisableTorchFunction, version_of
from lightning_kd.capture.watch import tensors_in

Key = tuple[int, int]
"""A tensor at a moment: its identity, and how often it had been changed in place."""

_NO_INPUTS: tuple[Key, ...] = ()
_PRODUCTS = {"matmul", "mm", "bmm", "einsum", "cosine_similarity", "cdist"}


def key_of(tensor: Tensor) -> Key:
    """Return what names a tensor at this moment."""
    return id(tensor), version_of(tensor)


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation: its name in torch, the tensors that it took, and whether weights were among them.

    Underscores around the name are left out, so that ``add`` and ``add_`` have one name.
    A single number, such as a learned temperature, is no weight here: it leaves what it scales as it is otherwise.
    """

    name: str
    inputs: tuple[Key, ...] = _NO_INPUTS
    has_weights: bool = False


class Operations(TorchFunctionMode):
    """Notes every operation on tensors inside the block; a function of ``torch.nn.functional`` is one operation.

    Scripted modules are not seen from outside: what they return has no operation.

    Args:
        network: The network, whose parameters and buffers count as weights, as does what is made of them alone.

    Example:
        >>> import torch
        >>> net = nn.Linear(2, 2)
        >>> with Operations(net) as operations:
        ...     inner = net(torch.ones(1, 2))
        ...     logits = inner.flatten(1) * 2.0
        >>> output, _ = operations.output_of(logits)
        >>> key_of(inner) in output
        True
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self._made: dict[Key, Operation] = {}
        self._weights = {id(tensor) for tensor in chain(network.parameters(), network.buffers())}
        self._alive: list[Tensor] = []  # an identity is used again when its tensor is gone

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        """Run the operation, and note it if it made or changed a tensor."""
        with DisableTorchFunction():
            given = tensors_in((args, kwargs))
            before = [key_of(tensor) for tensor in given]
        made = func(*args, **(kwargs or {}))
        with DisableTorchFunction():
            results = [one for one in tensors_in(made) if key_of(one) not in before]
            results += [tensor for tensor, key in zip(given, before, strict=True) if key_of(tensor) != key]
            if results:
                self._note(func, given, before, results)
        return made

    def _note(self, func: Callable[..., Any], given: list[Tensor], inputs: list[Key], results: list[Tensor]) -> None:
        data = tuple(key for key in inputs if key[0] not in self._weights)
        weights = any(tensor.numel() > 1 for tensor, key in zip(given, inputs, strict=True) if key not in data)
        operation = Operation(getattr(func, "__name__", "").strip("_"), data, weights)
        for result in results:
            self._made[key_of(result)] = operation
            self._alive.append(result)
            if inputs and not data:
                self._weights.add(id(result))

    def made_by(self, key: Key) -> Operation:
        """Return the operation that made a tensor; one without a name and inputs if none was seen."""
        return self._made.get(key) or self._made.get((key[0], 0)) or Operation("")

    def that_are(self, names: Collection[str]) -> list[tuple[Key, Operation]]:
        """Return the operations with one of the names, in order, each with the tensor that it made."""
        return [(key, operation) for key, operation in self._made.items() if operation.name in names]

    def lengths(self) -> dict[Key, int]:
        """Return for every tensor how many operations with weights lie on the longest way to it."""
        lengths: dict[Key, int] = {}
        for key, operation in self._made.items():
            lengths[key] = operation.has_weights + max((lengths.get(one, 0) for one in operation.inputs), default=0)
        return lengths

    def output_of(self, logits: Tensor) -> tuple[set[Key], list[Key]]:
        """Return the tensors that are the output in another form, and those that the last weights before it read.

        The output in another form is what feeds the output with neither a weight nor a product between: the maps that a
        convolutional head returns before they are pooled, each of several heads whose mean is taken.

        Args:
            logits: The output.
        """
        output: set[Key] = set()
        read: list[Key] = []
        waiting = [key_of(logits)]
        while waiting:
            key = waiting.pop()
            if key in output:
                continue
            output.add(key)
            operation = self.made_by(key)
            if operation.has_weights or operation.name in _PRODUCTS:
                read += operation.inputs
            else:
                waiting += operation.inputs
        return output, list(dict.fromkeys(read))

    def nearest(self, start: Iterable[Key], known: Iterable[Key], through: Collection[str] | None = None) -> list[Key]:
        """Return the known tensors that some tensors were made of, the nearest on each way back.

        Args:
            start: Where to begin.
            known: The tensors to stop at.
            through: Names of the operations that may lie between; any by default.
        """
        stops, found, done = set(known), [], set()
        waiting = list(start)
        while waiting:
            key = waiting.pop(0)
            if key in done:
                continue
            done.add(key)
            if key in stops:
                found.append(key)
                continue
            operation = self.made_by(key)
            if through is None or operation.name in through:
                waiting += operation.inputs
        return found
