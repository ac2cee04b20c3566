"""Several outputs of a network: each is a head, known by its name or number."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from torch import Tensor

Head: TypeAlias = int | str | None
"""Name or number of one of several outputs; ``None`` if none is named."""

OUTPUT = "<output>"
"""What a loss names as its layer to read the network's output; ``"<output.NAME>"`` is one of several outputs."""

_PREFIX = f"{OUTPUT[:-1]}."


class SeveralHeadsError(ValueError):
    """Which of several outputs of one shape is meant is not known."""


def is_output(layer: str) -> bool:
    """Whether a name of a layer means the network's output, or one of its outputs.

    Example:
        >>> is_output("<output>"), is_output("<output.aux>"), is_output("output")
        (True, True, False)
    """
    return layer == OUTPUT or (layer.startswith(_PREFIX) and layer.endswith(">"))


def is_module(layer: str) -> bool:
    """Whether a name of a layer is that of a module, whose output is meant, and not an output or an attention.

    Example:
        >>> is_module("layer3"), is_module("<output>"), is_module("<scores of layer3>")
        (True, False, False)
    """
    return not layer.startswith("<")


def head_in(layer: str) -> Head:
    """Return which of several outputs such a name means, ``None`` for the one that the task reads.

    Example:
        >>> head_in("<output.aux>"), head_in("<output.1>"), head_in("<output>")
        ('aux', 1, None)
    """
    name = layer.removeprefix(_PREFIX).removesuffix(">")
    return None if layer == OUTPUT else int(name) if name.isdecimal() else name


def heads_of(output: Any) -> dict[int | str, Tensor]:
    """Return the tensors in an output by name, or by number in a tuple or list; none of a single tensor.

    Example:
        >>> import torch
        >>> list(heads_of({"main": torch.zeros(2, 3), "aux": torch.zeros(2, 3), "note": "text"}))
        ['main', 'aux']
    """
    if isinstance(output, Tensor):
        return {}
    items: dict[Any, Any]
    if isinstance(output, Mapping):
        items = dict(output)
    elif isinstance(output, Sequence):
        items = dict(enumerate(output))
    else:
        slots = getattr(type(output), "__slots__", ())
        items = {name: getattr(output, name, None) for name in slots} | getattr(output, "__dict__", {})
    return {name: value for name, value in items.items() if isinstance(value, Tensor)}


def head_of(output: Any, head: int | str) -> Tensor:
    """Return one of several outputs; a network that returns one tensor has no other.

    Args:
        output: What a network returned.
        head: Name or number of the output.

    Raises:
        ValueError: If there is none of that name or number; the message shows those that there are.
    """
    if isinstance(output, Tensor):
        return output
    heads = heads_of(output)
    found = heads.get(head)
    if found is None and isinstance(head, str):  # the fields of a named tuple, a property
        found = getattr(output, head, None)
    if not isinstance(found, Tensor):
        fields = [*getattr(output, "_fields", ())]
        raise ValueError(
            f"A network's output, a {type(output).__name__}, has no head {head!r}; it has {fields or list(heads)}."
        )
    return found


def check_one_head(output: Sequence[Any], first: Tensor) -> None:
    """Raise ``SeveralHeadsError`` if the first of several outputs has the shape of another, so either may be meant."""
    alike = [number for number, one in enumerate(output) if isinstance(one, Tensor) and one.shape == first.shape]
    if len(alike) > 1:
        raise SeveralHeadsError(
            f"A network returned a {type(output).__name__} whose elements {alike} have the same shape "
            f"{tuple(first.shape)}, so which of them are the logits is not known. Say which the task reads by number, "
            f"logits={alike[0]}, and which a loss reads, if it is another, as in KDLoss(head={alike[-1]}); or override "
            "logits_of(output)."
        )
