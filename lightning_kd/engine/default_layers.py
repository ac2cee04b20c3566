"""Which layers a loss reads that was constructed without their names."""

from lightning_utilities.core.rank_zero import rank_zero_warn

from lightning_kd.capture.heads import OUTPUT
from lightning_kd.capture.trace import Ran, Seen
from lightning_kd.engine.stages import Stages, before_activations, find_features, find_stages, towers
from lightning_kd.losses.base import DistillationLoss, as_names
from lightning_kd.teachers.base import Teacher

_KINDS = {
    "embedding": "features before the output",
    "map": "a feature map or tokens",
    "maps": "feature maps or tokens",
    "pre_activation_maps": "a convolution or normalisation whose value an activation gets; a layer that ends with its "
    "activation has none to show",
}


def choose_layers(loss: DistillationLoss, student: Ran, teacher: Ran) -> str:
    """Name the layers of a loss that was constructed without names, as its ``reads`` asks for.

    - ``"embedding"``: what the last weights before the output read; ``Embeddings`` knows the networks whose output is
      the embedding.
    - ``"map"``: the last stage.
    - ``"maps"``: the last output of the stage of every resolution; of a network that has one resolution, the last block
      of each quarter of its depth.
    - ``"pre_activation_maps"``: in each of these stages the last value that an activation gets; of a residual block
      the sum.

    Stages of equal size are paired if there are two or more; else the stages are paired from the end.

    Args:
        loss: The loss.
        student: What ran in one call of the student.
        teacher: What ran in the teacher; not looked at if the loss reads the student alone.

    Returns:
        Both ends, with their shapes, in words.

    Raises:
        ValueError: If the networks have no layer of the kind that the loss reads, or several towers of them.
    """
    ours = _find(loss, "student", student)
    theirs = _find(loss, "teacher", teacher) if loss.pairs_layers else ours
    mine, its = pair_stages(ours, theirs)
    one = loss.reads in ("embedding", "map")
    names, other_names = ([seen.name for seen in side] for side in (mine, its))
    loss.name_layers(
        names[0] if one else names, (other_names[0] if one else other_names) if loss.pairs_layers else None
    )
    told = f"student {_shown(mine, ours)}"
    return f"{told} and teacher {_shown(its, theirs)}" if loss.pairs_layers else told


def chosen_before(name: str, loss: DistillationLoss, teacher: Teacher | None) -> str | None:
    """Name the layers of a loss that were chosen when a teacher's answers were stored.

    Args:
        name: The name of the part.
        loss: The loss, which names no layers.
        teacher: Who answers.

    Returns:
        Both layers in words, ``None`` if the teacher is a network that can be looked at.

    Raises:
        ValueError: If the answers were stored without this loss.
    """
    if teacher is None or not teacher.looks_up or not loss.pairs_layers:
        return None
    chosen = teacher.chosen_layers.get(name, {})
    if not chosen.get("teacher") or OUTPUT in as_names(chosen["teacher"]):
        raise ValueError(
            f"Part {name!r} names no layers, and none were stored for a part of this name, so which of the teacher's "
            f"it reads is not known. Name them: {type(loss).__name__}(STUDENT, TEACHER), or store them with "
            "`lightning-kd cache` and a configuration that has this loss."
        )
    loss.name_layers(chosen["student"], chosen["teacher"])
    return f"student {list(loss.student_layers)} and teacher {list(loss.teacher_layers)}, as they were stored"


def _find(loss: DistillationLoss, role: str, ran: Ran) -> Stages:
    """Return the layers of one network that fit, the last of them for a loss that reads one."""
    if loss.reads == "embedding":
        found = find_features(ran)
        _check_one(loss, role, found, len({seen.key for seen in found}) > 1)
        return _some(loss, role, Stages(found, [()] * len(found)), ran)
    stages = _some(loss, role, find_stages(ran), ran)
    if loss.reads == "pre_activation_maps":
        before = _some(loss, role, before_activations(ran, stages), ran)
        if before.branches:
            rank_zero_warn(
                f"{type(loss).__name__} reads the {role}'s {before.branches}, one branch of each residual block, and "
                "not the sum that the activation gets: that is no module's, or no block ends with it, so no hook can "
                "read the sum. Use an nn.ReLU at the end of the block, or name the layers."
            )
        return before
    if loss.reads == "map":
        ends = towers(ran, stages) if len(find_features(ran)) > 1 else []
        _check_one(loss, role, ends, len(ends) > 1)
        return Stages(stages.layers[-1:], stages.sizes[-1:])
    return stages


def _some(loss: DistillationLoss, role: str, stages: Stages, ran: Ran) -> Stages:
    if stages.layers:
        return stages
    raise ValueError(
        f"{type(loss).__name__} names no layers, and the {role} has none of the kind that it reads "
        f"({_KINDS[loss.reads]}). Name them: {type(loss).__name__}(student=..., teacher=...). "
        f"The {role} has: {', '.join(one.name for one in ran.layers[:20]) or 'no layers'}."
    )


def _check_one(loss: DistillationLoss, role: str, found: list[Seen], several: bool) -> None:
    if several:
        raise ValueError(
            f"{type(loss).__name__} names no layers, and the {role} has several that it could read, which run beside "
            f"each other: {', '.join(f'{seen.name!r} {tuple(seen.value.shape)}' for seen in found[:6])}. Name one, or "
            f"make a loss of each: {type(loss).__name__}(student=..., teacher=...)."
        )


def pair_stages(ours: Stages, theirs: Stages) -> tuple[list[Seen], list[Seen]]:
    """Pair stages of equal size if every one of the network with fewer has its like; else pair them from the end.

    Args:
        ours: The stages of the student.
        theirs: The stages of the teacher.
    """
    few, many = sorted((ours, theirs), key=len)
    if not (few.even or many.even) and 2 <= len(few) < len(many) and set(few.sizes) <= set(many.sizes):
        like = [many.layers[many.sizes.index(size)] for size in few.sizes]
        return (few.layers, like) if few is ours else (like, few.layers)
    return ours.take(len(few)), theirs.take(len(few))


def _shown(layers: list[Seen], stages: Stages) -> str:
    shown = ", ".join(f"{seen.name!r} {tuple(seen.value.shape)}" for seen in layers)
    return f"{shown} (of {len(stages.layers)} blocks, spread over the depth)" if stages.even else shown
