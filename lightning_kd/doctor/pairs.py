"""Which layers to compare: pairs of stages, with the reason for each."""

from dataclasses import dataclass

from torch import nn

from lightning_kd.capture.trace import Ran, Seen
from lightning_kd.doctor.similarity import cka
from lightning_kd.engine.default_layers import pair_stages
from lightning_kd.engine.stages import Stages, find_features, find_stages
from lightning_kd.losses import HintLoss, SPLoss
from lightning_kd.losses.base import DistillationLoss

_NEARER = 0.1
"""How much more alike another layer of the teacher must be to be named."""


@dataclass(frozen=True)
class Pair:
    """A layer of each network that may be compared.

    Args:
        student: Name of the student's layer.
        teacher: Name of the teacher's layer.
        loss: Class of a loss that can compare them.
        reason: Why these two.
        cka: How alike they are on the batch, NaN if that is not known.
    """

    student: str
    teacher: str
    loss: type[DistillationLoss]
    reason: str
    cka: float


def suggest(student: Ran, teacher: Ran) -> list[Pair]:
    """Suggest pairs of layers: the ends of the stages, as losses of feature maps read them, and the last features.

    Args:
        student: What ran in one call of the student.
        teacher: What ran in the teacher, on the same samples.
    """
    ours, theirs = find_stages(student), find_stages(teacher)
    mine, its = pair_stages(ours, theirs)
    pairs = [
        _pair(one, other, _stage(i, len(mine), ours), (student, teacher), theirs)
        for i, (one, other) in enumerate(zip(mine, its, strict=True), 1)
    ]
    taken = {(pair.student, pair.teacher) for pair in pairs}
    features, other_features = find_features(student), find_features(teacher)
    if len(features) == len(other_features) == 1 and (features[0].name, other_features[0].name) not in taken:
        pairs.append(
            _pair(features[0], other_features[0], "the features before the output", (student, teacher), Stages())
        )
    return pairs


def _stage(number: int, count: int, stages: Stages) -> str:
    return f"part {number} of {count} of the depth" if stages.even else f"end of stage {number} of {count}"


def _pair(one: Seen, other: Seen, what: str, both: tuple[Ran, Ran], theirs: Stages) -> Pair:
    depths = [depth_of(seen, ran) for seen, ran in zip((one, other), both, strict=True)]
    alike = cka(one.value, other.value)
    reason = f"{what}; {depths[0]:.0%} of the student's depth, {depths[1]:.0%} of the teacher's"
    if alike == alike:  # not NaN
        reason += f"; CKA {alike:.2f} on this batch"
        nearest = max(((cka(one.value, seen.value), seen.name) for seen in theirs.layers), default=(alike, other.name))
        if nearest[0] > alike + _NEARER:
            reason += f" ({nearest[1]}: {nearest[0]:.2f})"
    return Pair(one.name, other.name, _loss(one, other), reason, alike)


def depth_of(seen: Seen, ran: Ran) -> float:
    """Return which part of a network's layers of weights have run when a layer returns, 0..1."""
    weighty = [one.name for one in ran.every if _own_weights(one.layer)]
    names = [one.name for one in ran.every]
    until = set(names[: names.index(seen.name) + 1])
    return sum(name in until for name in weighty) / max(len(weighty), 1)


def _own_weights(layer: nn.Module) -> bool:
    return any(parameter.ndim > 1 for parameter in layer.parameters(recurse=False))


def _loss(one: Seen, other: Seen) -> type[DistillationLoss]:
    """Return a loss that compares two layers: their values if the shapes allow that, else how they relate samples."""
    try:
        HintLoss(one.name, other.name).build({one.name: tuple(one.value.shape)}, {other.name: tuple(other.value.shape)})
    except ValueError:
        return SPLoss
    return HintLoss
