"""Which layers a loss reads that was constructed without their names."""

from torch import nn

from lightning_kd.capture.private import BatchNorm, Conv
from lightning_kd.capture.trace import Seen
from lightning_kd.losses.base import DistillationLoss

_BEFORE_ACTIVATION = (BatchNorm, nn.GroupNorm, Conv)


def choose_layers(loss: DistillationLoss, student: list[Seen], teacher: list[Seen]) -> None:
    """Name the layers of a loss that was constructed without names, as its ``reads`` asks for.

    Args:
        loss: The loss.
        student: The student's layers in the order in which they ran.
        teacher: The teacher's layers; not looked at if the loss reads the student alone.

    Raises:
        ValueError: If the networks have no layer of the kind that the loss reads.
    """
    ours = _find(loss.reads, student)
    theirs = _find(loss.reads, teacher) if loss.pairs_layers else ours
    count = min(len(ours), len(theirs))
    if count == 0:
        role, seen = ("student", student) if not ours else ("teacher", teacher)
        raise ValueError(
            f"{type(loss).__name__} names no layers, and the {role} has none of the kind that it reads "
            f"({loss.reads.replace('_', ' ')}). Name them: {type(loss).__name__}(student=..., teacher=...). "
            f"The {role} has: {', '.join(one.name for one in seen[:20]) or 'no layers'}."
        )
    mine, its = ([one.name for one in side[-count:]] for side in (ours, theirs))
    one = loss.reads in ("embedding", "map")
    loss.name_layers(mine[0] if one else mine, (its[0] if one else its) if loss.pairs_layers else None)


def _find(reads: str, layers: list[Seen]) -> list[Seen]:
    if reads == "embedding":
        return layers[-1:]
    if reads == "pre_activation_maps":
        layers = [one for one in layers if isinstance(one.layer, _BEFORE_ACTIVATION)] or layers
    maps = [one for one in layers if one.value.ndim == 4 and one.value[0, 0].numel() > 1]
    maps = maps or [one for one in layers if one.value.ndim == 3]
    if reads == "map":
        return maps[-1:]
    return list({one.value.shape[2:] if one.value.ndim == 4 else (): one for one in maps}.values())
