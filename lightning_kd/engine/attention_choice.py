"""Which loss compares where two networks look: attention matrices of transformers, or attention maps of all others."""

from collections.abc import Iterable, Mapping
from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_info
from torch import nn

from lightning_kd.capture.attention_kinds import every_attention_in, find_attention, is_behind_interface
from lightning_kd.capture.networks import original, plain_name
from lightning_kd.engine.layer_maps import blocks_of, pairs_of_blocks
from lightning_kd.engine.objective import Objective
from lightning_kd.losses.base import DistillationLoss
from lightning_kd.losses.features.at import ATLoss
from lightning_kd.losses.tokens.attention import AttentionMatrixLoss, Heads

_NAME = "ATTENTION_BASED"
_HOW = "uniform"
_SAME_PATCHES = ("model_type", "image_size", "patch_size")
_SAME_TOKENS = ("grid of patches", "number of tokens before the patches")


def choose_attention(objective: Objective, student: nn.Module, teacher: nn.Module, *, stored: bool) -> None:
    """Let each ``ATLoss`` that is to choose give way to ``AttentionMatrixLoss`` where both networks show attention.

    Args:
        objective: The losses.
        student: The student.
        teacher: The network that teaches, or the student if the teacher is yet to be made of it.
        stored: Whether the teacher's answers are stored, so that only what they hold can be read.
    """
    waiting = [loss for loss in objective.losses.modules() if isinstance(loss, ATLoss) and loss.transformers]
    for loss in waiting:
        heads = None
        if not loss.student_layers and not stored:
            heads = _heads(original(student), original(teacher), tell=loss.instead is None)
        now = loss.instead
        if heads is None:
            loss.stand_aside_for(None)
        elif not isinstance(now, AttentionMatrixLoss) or now.heads != heads:
            loss.stand_aside_for(AttentionMatrixLoss(_HOW, heads=heads))
            rank_zero_info(
                f"{_NAME} compares the attention matrices of both transformers, by AttentionMatrixLoss({_HOW!r}, "
                f"heads={heads!r}). For the maps of their layers take ATLoss()."
            )
    if waiting:
        objective.find_leaves()


def check_same_choice(leaves: Iterable[tuple[str, DistillationLoss]], saved: Mapping[str, Any]) -> None:
    """Raise a ``ValueError`` if a checkpoint was made with the other of the two losses.

    Args:
        leaves: The losses that read layers, with their names.
        saved: What ``SetUp.state`` has written; its ``"layers"`` are of losses that may choose layers, as ``ATLoss``.
    """
    if saved["shapes"] is None:
        return
    for name, loss in leaves:
        had_maps = name in saved["layers"]
        has_matrices = isinstance(loss, AttentionMatrixLoss)
        if (has_matrices and had_maps) or (isinstance(loss, ATLoss) and loss.transformers and not had_maps):
            was, now = ("maps (ATLoss)", "matrices (AttentionMatrixLoss)")[:: 1 if has_matrices else -1]
            raise ValueError(
                f"Part {name!r} compared attention {was} when the checkpoint was made, and would compare attention "
                f"{now} of these networks. Load the networks with the attn_implementation that they had, or name the "
                "loss you want."
            )


def _heads(student: nn.Module, teacher: nn.Module, *, tell: bool) -> Heads | None:
    """Return how the heads of both networks are compared, ``None`` if their attention matrices are not."""
    networks = {"student": student, "teacher": teacher}
    if not all(any(True for _ in every_attention_in(network)) for network in networks.values()):
        return None
    try:
        blocks = {role: blocks_of(network, _NAME, _HOW, role) for role, network in networks.items()}
        count, of = len(blocks["student"]), len(blocks["teacher"])
        if count > of:
            raise ValueError(f"The student has {count} blocks, the teacher {of}.")
        pairs = pairs_of_blocks(_HOW, count, of)
        ours = _of_blocks(student, [blocks["student"][i] for i, _ in pairs], "student")
        theirs = _of_blocks(teacher, [blocks["teacher"][j] for _, j in pairs], "teacher")
        _check_patches(student, teacher)
    except ValueError as error:
        if tell:
            rank_zero_info(f"{_NAME} compares the maps of both networks, by ATLoss, not their attention: {error}")
        return None
    return "same" if ours == theirs else "mean"


def _of_blocks(network: nn.Module, names: list[str], role: str) -> list[Any]:
    """Return how many heads each block has, as far as its configuration or its attention tells."""
    modules = {plain_name(name): module for name, module in network.named_modules(remove_duplicate=False)}
    found: list[Any] = []
    for name in names:
        attention = find_attention(modules[name], name, role)
        if attention is None:
            raise ValueError(f"The {role}'s {name!r} has no attention that can be read.")
        if not is_behind_interface(attention):
            found.append(_number_of_heads(attention, name, role))
            continue
        if getattr(attention.config, "is_encoder_decoder", False):
            raise ValueError(f"The {role} is an encoder with a decoder; name the blocks of an AttentionMatrixLoss.")
        found.append(getattr(attention.config, "num_attention_heads", None))
    return found


def _number_of_heads(attention: nn.Module, name: str, role: str) -> int:
    heads = getattr(attention, "num_heads", None)
    if not isinstance(heads, int):
        raise ValueError(f"The {role}'s {name!r} does not tell its number of heads; name the blocks of both.")
    return heads


def _check_patches(student: nn.Module, teacher: nn.Module) -> None:
    """Raise a ``ValueError`` if two networks cut images into other tokens, or it is not known."""
    if not any(_is_of_transformers(network) for network in (student, teacher)):
        _check_tokens(student, teacher)
        return
    if not all(_is_of_transformers(network) for network in (student, teacher)):
        raise ValueError("Only one of both is of transformers, so it is not known whether their tokens are the same.")
    ours, theirs = (getattr(network, "config", None) for network in (student, teacher))
    if not any(hasattr(one, "patch_size") for one in (ours, theirs)):
        return
    for name in _SAME_PATCHES:
        mine, its = getattr(ours, name, None), getattr(theirs, name, None)
        if mine != its:
            raise ValueError(f"The student's {name} is {mine!r}, the teacher's {its!r}, so their tokens differ.")


def _is_of_transformers(network: nn.Module) -> bool:
    return any(is_behind_interface(module) for _, module in every_attention_in(network))


def _check_tokens(student: nn.Module, teacher: nn.Module) -> None:
    """Raise a ``ValueError`` if two vision transformers of timm or torchvision cut images into other tokens."""
    ours, theirs = _tokens(student, "student"), _tokens(teacher, "teacher")
    for name, mine, its in zip(_SAME_TOKENS, ours, theirs, strict=True):
        if mine != its:
            raise ValueError(f"The student's {name} is {mine!r}, the teacher's {its!r}, so their tokens differ.")


def _tokens(network: nn.Module, role: str) -> tuple[Any, int]:
    """Return the grid of patches of a vision transformer, and how many tokens stand before them."""
    grid = getattr(getattr(network, "patch_embed", None), "grid_size", None)  # of timm
    before = getattr(network, "num_prefix_tokens", None)
    size, patch, length = (getattr(network, name, None) for name in ("image_size", "patch_size", "seq_length"))
    if isinstance(size, int) and isinstance(patch, int) and isinstance(length, int):  # of torchvision
        grid = (size // patch, size // patch)
        before = length - grid[0] * grid[1]
    if isinstance(grid, tuple) and isinstance(before, int):
        return grid, before
    raise ValueError(
        f"It is not known beforehand which tokens the {role} has. Name AttentionMatrixLoss('uniform') if they are "
        "those of the other network."
    )
