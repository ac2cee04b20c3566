"""The task's own loss, also of batches in which no sample has a label."""

import math
from collections.abc import Mapping
from typing import Any, cast

import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor, nn

from lightning_kd.capture.batch import Batch
from lightning_kd.capture.networks import original
from lightning_kd.capture.padding import has_left_pads
from lightning_kd.engine.labels import as_class_ids, words_for_labels
from lightning_kd.metrics.task import IGNORE_INDEX


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
    if not isinstance(target, Tensor):  # a loss of the user's own may take it
        return _of_other_target(task_loss, logits, target)
    with words_for_labels("The task's own loss", target, logits):
        return _term(task_loss, logits, cast(Tensor, as_class_ids(target, logits)))


def _term(task_loss: nn.Module, logits: Tensor, target: Tensor) -> Tensor:
    unlabelled = getattr(task_loss, "ignore_index", None)
    if unlabelled is None or target.is_floating_point():
        return cast(Tensor, task_loss(logits, target))
    if target.is_cpu:
        value: Tensor = task_loss(logits, target)
        if not isinstance(value, Tensor) or value.numel() != 1 or not math.isnan(value.item()):
            return value
        if (target != unlabelled).any():
            _check_class_weights(task_loss, logits, target, unlabelled)
            return value
    labelled = (target != unlabelled).any()
    value = task_loss(logits, torch.where(labelled, target, 0))
    return value.mul(labelled)


def check_task_loss(task_loss: "nn.Module | str | None") -> None:
    """Raise a ``ValueError`` unless a task's loss is a module, ``"model"`` or none."""
    if isinstance(task_loss, str) and task_loss != "model":
        raise ValueError(f"DistillationModule: expected task_loss to be a module or 'model', got {task_loss!r}.")


def check_target(read: Batch) -> None:
    """Raise a ``ValueError`` if a batch has no target."""
    if read.target is None:
        raise ValueError(
            "task_loss needs a target, but the batch has none; give (x, y), override unpack_batch, or drop task_loss."
        )


class ModelLoss:
    """The task's loss that a student computes itself, of the labels that it is called with.

    Args:
        student: The student.
    """

    def __init__(self, student: nn.Module) -> None:
        self.student = student
        self._told = False
        self._looks = 20

    def __call__(self, output: Any, read: Batch) -> Tensor:
        """Return the loss in a student's output.

        Raises:
            ValueError: If there is none.
        """
        loss = own_loss(output)
        if loss is None:
            raise ValueError(
                f"task_loss='model' takes the loss that the student computes itself, but the output of "
                f"{type(original(self.student)).__name__} holds none. Give batches with the labels that its forward "
                "takes, or a task_loss such as CrossEntropyLoss()."
            )
        if not self._told and (loss.is_cpu or self._looks > 0):  # elsewhere a look waits for the device
            self._looks -= 1
            self._tell(read)
        return loss if loss.ndim == 0 else loss.mean()

    def _tell(self, read: Batch) -> None:
        """Say once that the first token after padding on the left is predicted from the padding."""
        mask, labels = read.kwargs.get("attention_mask"), read.target
        if not self.is_shifted or not isinstance(labels, Tensor) or not has_left_pads(mask):
            return
        assert isinstance(mask, Tensor), "it has padding"
        if labels.shape == mask.shape and bool(((mask[:, 1:] > mask[:, :-1]) & (labels[:, 1:] != IGNORE_INDEX)).any()):
            self._told = True
            rank_zero_warn(
                "The student's own loss (task_loss='model') also counts the first token of a row that is padded on the "
                "left, which it predicts from the padding. Label that token -100, or pad on the right."
            )

    @property
    def is_shifted(self) -> bool:
        """Whether the student predicts the next token, so that its loss reads the labels of one position later."""
        return getattr(original(self.student), "loss_type", None) == "ForCausalLM"

    def count(self, target: Any) -> int:
        """Return what the mean in the loss is over."""
        if not isinstance(target, Tensor) or target.ndim == 0:
            return 1
        if target.is_floating_point() or target.ndim < 2:
            return len(target)
        return int(((target[:, 1:] if self.is_shifted else target) != IGNORE_INDEX).sum())


def own_loss(output: Any) -> Tensor | None:
    """Return the loss in a model's output, ``None`` if it holds none."""
    loss = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
    return loss if isinstance(loss, Tensor) else None


def count_of_labels(task_loss: nn.Module | ModelLoss | None, target: Any) -> int:
    """Return what a mean of the task's loss is over: the labels, where the loss leaves some out, else the rows.

    Example:
        >>> count_of_labels(nn.CrossEntropyLoss(ignore_index=255), torch.tensor([0, 255, 1]))
        2
    """
    if isinstance(task_loss, ModelLoss):
        return task_loss.count(target)
    if not isinstance(target, Tensor):
        return len(target[0]) if isinstance(target, tuple | list) and hasattr(target[0], "__len__") else 1
    unlabelled = getattr(task_loss, "ignore_index", None)
    if unlabelled is None or target.is_floating_point():
        return len(target)
    return int((target != unlabelled).sum())


def _of_other_target(task_loss: nn.Module, logits: Tensor, target: object) -> Tensor:
    try:
        return cast(Tensor, task_loss(logits, target))
    except (TypeError, AttributeError) as error:
        raise ValueError(
            f"task_loss {type(task_loss).__name__} cannot take a target that is a {type(target).__name__}: {error}. "
            "Override unpack_batch to return a tensor, of mixup such as lam * one_hot(a) + (1 - lam) * one_hot(b), or "
            "write a task_loss that takes it."
        ) from error


def _check_class_weights(task_loss: nn.Module, logits: Tensor, target: Tensor, unlabelled: int) -> None:
    """Raise a ``ValueError`` if the loss is NaN only because the classes of this batch have no weight."""
    weights = getattr(task_loss, "weight", None)
    if not isinstance(weights, Tensor) or not logits.isfinite().all():
        return
    if not weights[target[target != unlabelled].long()].any():
        raise ValueError(
            "Part 'task' is not a number: the class weights of the labels in this batch sum to 0, so the mean is over "
            f"nothing ({type(task_loss).__name__}, weight={weights.tolist()}). Give every class a weight > 0, or mark "
            "those samples by ignore_index."
        )
