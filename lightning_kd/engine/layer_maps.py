"""Blocks of two networks paired by their depth, for a loss that names a map in the place of layers."""

from collections.abc import Iterable

from lightning_utilities.core.rank_zero import rank_zero_info
from torch import nn

from lightning_kd.capture.attention_kinds import every_attention_in, kinds_of_attention
from lightning_kd.capture.networks import original, plain_name
from lightning_kd.losses.base import DistillationLoss


def map_layers(
    losses: Iterable[DistillationLoss], student: nn.Module, teacher: nn.Module | None, stored: Iterable[str] = ()
) -> None:
    """Give each loss that names a map the blocks of both networks, and say which.

    Args:
        losses: The losses.
        student: The student.
        teacher: The network that teaches; ``None`` if it is yet to be made of the student.
        stored: The layers whose values are stored, of a teacher whose network is not there.

    Raises:
        ValueError: If the blocks of a network are not known, the student has more than the teacher, or the stored
            layers are of a teacher that has more.
    """
    for loss in losses:
        how = loss.student
        if not isinstance(how, str) or how not in loss.layer_maps or _has(student, how):
            continue
        loss_name = type(loss).__name__
        ours = blocks_of(student, loss_name, how, "student")
        theirs = ours if teacher is None else blocks_of(teacher, loss_name, how, "teacher")
        if deeper := [name for name in stored if _is_behind(name, ours)]:
            raise ValueError(
                f"{loss_name}: {how!r} is not known of stored answers of a teacher that has more blocks than the "
                f"student: {deeper[0]!r} is stored, and the student ends with {ours[-1]!r}. Name the layers of both: "
                f"{loss_name}(student=[...], teacher=[...]); stored are {list(stored)}."
            )
        if len(ours) > len(theirs):
            raise ValueError(
                f"{loss_name}: the student has {len(ours)} blocks, the teacher {len(theirs)}, so {how!r} has no block "
                "of the teacher for each; name the layers of both."
            )
        pairs = pairs_of_blocks(how, len(ours), len(theirs))
        before = loss.student_layers
        loss.take_layers([ours[i] for i, _ in pairs], [theirs[j] for _, j in pairs])
        if before == (how,):  # for the first time
            named = ", ".join(f"{ours[i]!r} and {theirs[j]!r}" for i, j in pairs)
            rank_zero_info(f"{loss_name}({how!r}) reads the blocks of student and teacher: {named}.")


def pairs_of_blocks(how: str, student: int, teacher: int) -> list[tuple[int, int]]:
    """Return which block of the student is compared with which of the teacher, both counted from 0.

    Args:
        how: ``"uniform"``: the last block of each equal part of the teacher, ``round((i + 1) L / l) - 1``. ``"skip"``:
            the first, ``round(i L / l)``. ``"last"``: the last block of both alone.
        student: How many blocks the student has, l.
        teacher: How many blocks the teacher has, L.

    Example:
        >>> [pairs_of_blocks(how, 2, 6) for how in ("uniform", "skip", "last")]
        [[(0, 2), (1, 5)], [(0, 0), (1, 3)], [(1, 5)]]
    """
    if how == "last":
        return [(student - 1, teacher - 1)]
    if how == "skip":
        return [(i, round(i * teacher / student)) for i in range(student)]
    return [(i, round((i + 1) * teacher / student) - 1) for i in range(student)]


def blocks_of(network: nn.Module, loss: str, how: str, role: str) -> list[str]:
    """Return the dotted names of a network's blocks, in order: the outermost list of modules of one class.

    Of several lists the one whose modules have attention is taken.

    Args:
        network: The network.
        loss: Name of the loss, for the message.
        how: Name of the map, for the message.
        role: ``"student"`` or ``"teacher"``, for the message.

    Raises:
        ValueError: If there is no such list, or several.
    """
    found: dict[str, nn.Module] = {}
    for name, module in original(network).named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in found)
        if not inside and isinstance(module, nn.ModuleList | nn.Sequential) and _are_alike(module):
            found[plain_name(name)] = module
    attending = {name: module for name, module in found.items() if _attends(module)}
    lists = attending or found
    if len(lists) != 1:
        has = f"has several lists of blocks ({', '.join(lists)})" if lists else "has no list of blocks of one class"
        raise ValueError(f"{loss}: {how!r} takes the blocks of the {role}, which {has}. Name the layers of both.")
    ((name, blocks),) = lists.items()
    return [f"{name}.{key}" if name else key for key, _ in blocks.named_children()]


def _is_behind(name: str, blocks: list[str]) -> bool:
    """Whether a layer is named as a block behind the last one of a list."""
    before, _, number = name.rpartition(".")
    return before == blocks[-1].rpartition(".")[0] and number.isdigit() and int(number) >= len(blocks)


def _has(network: nn.Module, name: str) -> bool:
    return name in {plain_name(one) for one, _ in original(network).named_modules()}


def _are_alike(blocks: nn.Module) -> bool:
    kinds = {type(block) for block in blocks.children()}
    return len(kinds) == 1 and any(True for block in blocks.children() for _ in block.children())


def _attends(blocks: nn.Module) -> bool:
    first = next(iter(blocks.children()))
    return any(True for _ in every_attention_in(first)) or bool(kinds_of_attention(first))
