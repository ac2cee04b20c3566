"""Names of losses: under which they are logged and saved."""

import re
from collections.abc import Sequence

RESERVED = ("task", "loss")


def names_of(losses: Sequence[object]) -> list[str]:
    """Return a name for each loss, after its class: ``kd``, ``hint``, ``hint_2`` for a second.

    Args:
        losses: The losses, in order.
    """
    names: list[str] = []
    for loss in losses:
        stem = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", type(loss).__name__).lower()
        stem = stem.removesuffix("_loss")
        taken = [name for name in (*names, *RESERVED) if re.fullmatch(rf"{stem}(_\d+)?", name)]
        names.append(f"{stem}_{len(taken) + 1}" if taken else stem)
    return names
