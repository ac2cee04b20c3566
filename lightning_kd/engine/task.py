"""The task's own loss, also of batches in which no sample has a label."""

import math
from typing import cast

import torch
from torch import Tensor, nn

from lightning_kd.engine.labels import as_class_ids, words_for_labels


def task_term(task_loss: nn.Module, logits: Tensor | None, target: Tensor | None) -> Tensor:
    """Return the task's own loss; 0 for a batch without a label, where the mean of nothing would be NaN.

    Args:
        task_loss: The task's loss on (logits, target). Its ``ignore_index``, if any, marks samples without a label.
        logits: The student's logits.
        target: Class ids or soft targets.

    Raises:
        ValueError: If there are no logits or no target, or a class id is out of range.

    Example:
        >>> task_term(nn.CrossEntropyLoss(), torch.zeros(2, 3), torch.tensor([-100, -100]))
        tensor(0.)
    """
    if logits is None or target is None:
        missing = "logits in the student's output" if logits is None else "target in the batch"
        raise ValueError(f"task_loss needs logits and a target, but there are no {missing}.")
    with words_for_labels("The task's own loss", target, logits):
        return _term(task_loss, logits, cast(Tensor, as_class_ids(target, logits)))


def _term(task_loss: nn.Module, logits: Tensor, target: Tensor) -> Tensor:
    unlabelled = getattr(task_loss, "ignore_index", None)
    if unlabelled is None or target.is_floating_point():
        return cast(Tensor, task_loss(logits, target))
    if target.is_cpu:
        value: Tensor = task_loss(logits, target)
        if not math.isnan(value.item()) or (target != unlabelled).any():
            return value
    labelled = (target != unlabelled).any()
    value = task_loss(logits, torch.where(labelled, target, 0))
    return value.mul(labelled)
