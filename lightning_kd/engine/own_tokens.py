"""Whether losses of tokens are given what they need where student and teacher read tokens of their own."""

from collections.abc import Iterable

import torch
from torch import Tensor

from lightning_kd.capture.batch import Batch
from lightning_kd.losses.base import DistillationLoss
from lightning_kd.losses.tokens.token_kd import TokenKDLoss
from lightning_kd.losses.tokens.uld import ULDLoss


def check_own_tokens(losses: Iterable[tuple[str, DistillationLoss]], read: Batch) -> None:
    """Check the labels of both on the first samples, where the teacher reads columns of its own.

    Args:
        losses: The losses by name.
        read: The batch taken apart.

    Raises:
        ValueError: If a loss compares token by token what are other tokens, or lacks the teacher's labels.
    """
    ours, theirs = read.target, read.teacher_target
    for name, loss in losses:
        if isinstance(loss, ULDLoss) and theirs is None:
            raise ValueError(
                f"Part {name!r}: the teacher reads tokens of its own (teacher_inputs=OwnColumns()), so ULDLoss needs "
                "the labels of these too; give them as the column 'teacher_labels', -100 where no answer is."
            )
        if isinstance(loss, TokenKDLoss) and not _same(ours, theirs):
            raise ValueError(
                f"Part {name!r}: TokenKDLoss compares both networks token by token, but the teacher reads other tokens "
                "than the student (teacher_inputs=OwnColumns(), and 'teacher_labels' are not 'labels'). Use ULDLoss, "
                "which needs no common tokenizer."
            )


def reads_other_tokens(read: Batch) -> bool:
    """Whether the teacher reads other tokens than the student, as its labels tell."""
    return read.teacher_target is not None and not _same(read.target, read.teacher_target)


def _same(ours: Tensor | None, theirs: Tensor | None) -> bool:
    return ours is not None and theirs is not None and ours.shape == theirs.shape and torch.equal(ours, theirs)
