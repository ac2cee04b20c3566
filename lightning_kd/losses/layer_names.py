"""What names the layers that a loss reads: checked where the loss is constructed, in the user's words."""

from collections.abc import Iterable, Sequence

from torch import nn


def checked_names(loss: str, role: str, layers: str | Sequence[str] | None) -> tuple[str, ...]:
    """Return the names of a role's layers as a tuple.

    Args:
        loss: The loss, for errors.
        role: ``"student"`` or ``"teacher"``.
        layers: One name, several, or ``None``.

    Raises:
        ValueError: If something else than a name is given, or a layer is named twice.

    Example:
        >>> checked_names("HintLoss", "student", "layer1"), checked_names("HintLoss", "student", None)
        (('layer1',), ())
    """
    if layers is None:
        return ()
    if isinstance(layers, str):
        return (layers,)
    several = isinstance(layers, Iterable) and not isinstance(layers, nn.Module)
    names: tuple[str, ...] = tuple(layers) if several else ()
    wrong: list[object] = [one for one in names if not isinstance(one, str)] if several else [layers]
    if wrong:
        remedy = "name it as in named_modules()" if isinstance(wrong[0], nn.Module) else "name one layer after another"
        raise ValueError(
            f"{loss}: expected the {role} layers as names, such as 'layer1' or ['layer1', 'layer2'], got "
            f"{_shown(wrong[0])}{' in the list' if several else ''}; {remedy}."
        )
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"{loss}: {role} layer {twice[0]!r} is named twice; name each layer once.")
    return names


def _shown(value: object) -> str:
    kind = type(value).__name__
    return f"a module {kind}" if isinstance(value, nn.Module) else f"the {kind} {value!r}"
