"""One call of a network: what it was given, what it returned, and the value of each named layer in it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from lightning_kd.capture.attention import AttentionCall
from lightning_kd.capture.private import UNKNOWN, version_of
from lightning_kd.capture.tensors_in import Path, is_held, tensors_in


@dataclass(slots=True)
class Call:
    """One call of the module in a step, and the value of each named layer in it.

    A version counts how often a tensor has been changed in place. A recorded value whose version has grown since is no
    longer the value that the layer returned.
    """

    called: bool = False
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    output: Any = None
    logits: Tensor | None = None
    """The logits in the student's output, once a loss has looked for them; a ``logits_of`` may compute them."""
    features: dict[str, Tensor] = field(default_factory=dict)
    attended: dict[str, AttentionCall] = field(default_factory=dict)
    """What the attention of watched blocks was called with, by the names of the blocks."""
    versions: list[int] = field(default_factory=list)
    """The versions of the features, in the order of the features."""
    inputs: Sequence[tuple[Tensor, int]] = ()
    """The tensors that the module was called with, with their versions then."""
    taken: Mapping[Path, Tensor] = field(default_factory=dict)
    """Those of them that stood in containers or objects, by where they were."""
    outputs: Sequence[tuple[Tensor, int]] = ()
    """The tensors that the module returned, with their versions then."""
    returned: Mapping[Path, Tensor] = field(default_factory=dict)
    """Those of them that stood in containers or objects, by where they were."""
    copies: Sequence[Tensor] = ()
    """Copies of the inputs, where these have no versions, as under ``torch.inference_mode``."""
    copies_of_outputs: Sequence[Tensor] = ()
    """The same of the outputs."""
    no_tensor: Sequence[tuple[str, str]] = ()
    """Layers that returned no tensor, with the name of what they returned."""
    ran_twice: Sequence[str] = ()
    """Layers that ran more than once in the call."""
    without_grad: Sequence[str] = ()
    """Layers that ran while gradients were switched off, ``""`` for the module itself."""
    of: "Call | None" = None
    """The student's call that the teacher is asked about, for one that looks its answer up."""
    index: Tensor | None = None
    """The row of each sample in the data set, if the batch carries it, for such a teacher."""
    layers_only: bool = False
    """Whether the teacher's output is not read, only its layers."""
    is_example: bool = False
    """Whether the student was called with an example, not with samples of the data."""

    def note_inputs(self, args: tuple[Any, ...], kwargs: dict[str, Any], *, copied: bool) -> None:
        """Note what the module is called with, before it runs; what was noted of a call around it is forgotten.

        Args:
            args: Its positional inputs.
            kwargs: Its named inputs.
            copied: Whether to keep copies of inputs without versions.
        """
        given = tensors_in(args, kwargs)
        self.inputs, self.taken = with_versions(given.values()), _inside(given)
        self.copies = _copies(self.inputs) if copied else ()

    def note_output(self, output: Any, *, copied: bool) -> None:
        """Note what the module returned.

        Args:
            output: What it returned.
            copied: Whether to keep copies of tensors without versions.
        """
        self.output = output
        given = tensors_in((output,))
        self.outputs, self.returned = with_versions(given.values()), _inside(given)
        self.copies_of_outputs = _copies(self.outputs) if copied else ()

    def changed_layers(self) -> list[str]:
        """Return the layers whose value was changed in place after they had returned it."""
        versions = self.versions
        if UNKNOWN not in versions and [version_of(value) for value in self.features.values()] == versions:
            return []
        pairs = zip(self.features.items(), versions, strict=True)
        return [layer for (layer, value), version in pairs if _is_changed(value, version)]

    @property
    def empty(self) -> bool:
        """Whether the module was called with no samples: the first axis of its first tensor has no rows."""
        for value in (*self.args, *self.kwargs.values()) if self.kwargs else self.args:
            if isinstance(value, Tensor):
                return value.ndim > 0 and value.shape[0] == 0
        return False

    def rows(self, axis: int = 0) -> int:
        """Return how many samples the module was called with: the length of its first tensor.

        Of inputs in dictionaries, tuples or objects, such as graphs of many nodes, the output tells; without one their
        first tensor; 1 if there is none.

        Args:
            axis: The axis of the samples.
        """
        for value in (*self.args, *self.kwargs.values()) if self.kwargs else self.args:
            if isinstance(value, Tensor):
                return value.shape[axis] if value.ndim > axis else 1
            if isinstance(value, list):  # of samples
                return len(value)
        inside = (*tensors_in((self.output,)).values(), *tensors_in(self.args, self.kwargs).values())
        return next((len(value) for value in inside if value.ndim), 1)

    @property
    def changed_input(self) -> bool:
        """Whether the module's input was changed since it was called: a tensor in place, or what a container holds."""
        if any_changed(self.inputs) or not _are_equal(self.inputs, self.copies):
            return True
        return bool(self.taken) and not is_held(self.taken, tensors_in(self.args, self.kwargs))

    @property
    def changed_output(self) -> bool:
        """Whether the module's output was changed since then: a tensor in place, or what a container holds."""
        if any_changed(self.outputs) or not _are_equal(self.outputs, self.copies_of_outputs):
            return True
        return bool(self.returned) and not is_held(self.returned, tensors_in((self.output,)))


def describe_call(call: Call) -> str:
    """Return a call's arguments as ``(float32[8, 3, 32, 32], mask=bool[8])``."""
    named = (f"{name}={_show(value)}" for name, value in call.kwargs.items())
    return f"({', '.join([*map(_show, call.args), *named])})"


def with_versions(values: Iterable[object]) -> list[tuple[Tensor, int]]:
    """Return the tensors among some values, each with its version."""
    return [(value, version_of(value)) for value in values if isinstance(value, Tensor)]


def any_changed(held: Iterable[tuple[Tensor, int]]) -> bool:
    """Whether one of some tensors was changed in place since its version was noted.

    Example:
        >>> import torch
        >>> x = torch.zeros(2)
        >>> held = with_versions([x])
        >>> any_changed(held), any_changed([(x.add_(1), held[0][1])])
        (False, True)
    """
    return any(_is_changed(tensor, version) for tensor, version in held)


def _inside(given: Mapping[Path, Tensor]) -> dict[Path, Tensor]:
    return {path: tensor for path, tensor in given.items() if len(path) > 1}


def _copies(values: Sequence[tuple[Tensor, int]]) -> list[Tensor]:
    return [tensor.clone() for tensor, _ in values] if any(version == UNKNOWN for _, version in values) else []


def _are_equal(now: Sequence[tuple[Tensor, int]], copies: Sequence[Tensor]) -> bool:
    return not copies or all(_is_equal(one, copy) for (one, _), copy in zip(now, copies, strict=True))


def _is_equal(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and bool(((one == other) | ((one != one) & (other != other))).all())


def _is_changed(tensor: Tensor, version: int) -> bool:
    return version != UNKNOWN and version_of(tensor) != version


def _show(value: object) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    return type(value).__name__
