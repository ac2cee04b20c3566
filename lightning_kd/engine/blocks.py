"""Shows the losses that read the attention of blocks the networks that have these blocks."""

from collections.abc import Iterable

from torch import nn

from lightning_kd.capture.networks import original
from lightning_kd.losses.base import DistillationLoss
from lightning_kd.losses.tokens.blocks import ReadsAttention


def show_blocks(losses: Iterable[DistillationLoss], student: nn.Module, teacher: nn.Module | None) -> None:
    """Let losses find out which of their names are blocks whose attention they read.

    Args:
        losses: The losses.
        student: The student.
        teacher: The network that teaches, ``None`` if none does.
    """
    for loss in losses:
        if isinstance(loss, ReadsAttention):
            loss.see_blocks("student", original(student))
            if teacher is not None:
                loss.see_blocks("teacher", original(teacher))
