"""The task's own loss, also of batches in which no sample has a label."""

import math
from typing import Any, cast

import torch
from torch import Tensor, nn

from lightning_kd.capture.call import any_changed, with_versions
from lightning_kd.distributed.gather import share_of_all
from lightning_kd.engine.labels import as_class_ids, say_of_labels
from lightning_kd.engine.mean_of_loss import CountsLabels
from lightning_kd.metrics.task import without_column

_VALUE_BY_VALUE = (
    nn.MSELoss,
    nn.L1Loss,
    nn.HuberLoss,
    nn.SmoothL1Loss,
    nn.PoissonNLLLoss,
    nn.BCELoss,
    nn.BCEWithLogitsLoss,
    nn.SoftMarginLoss,
    nn.HingeEmbeddingLoss,
    nn.KLDivLoss,
)
"""Torch's losses that compare each output with a value of its own, and most of which broadcast unequal shapes."""


_CHANGED_TARGET = (
    "task_loss, a {}, changed the target in place, which the other losses and the metrics read too. Let it begin with "
    "target = target.clone()."
)


def task_term(task_loss: nn.Module, logits: Tensor | None, target: Tensor | None) -> Tensor:
    """Return the task's own loss; 0 for a batch without a label, where the mean of nothing would be NaN.

    Args:
        task_loss: The task's loss on (logits, target). Its ``ignore_index``, if any, marks samples without a label.
        logits: The student's logits.
        target: Class ids, soft targets or values. Torch's own losses get values of shape (B,) for outputs (B, 1), and
            the reverse, in the shape of the outputs, and class ids without an axis of length one for the classes.

    Raises:
        ValueError: If there are no logits or no target, a class id is out of range, or one of torch's own losses would
            broadcast the target over the outputs, or read the classes on another axis.

    Example:
        >>> task_term(nn.CrossEntropyLoss(), torch.zeros(2, 3), torch.tensor([-100, -100]))
        tensor(0.)
    """
    if logits is None or target is None:
        missing = "logits in the student's output" if logits is None else "target in the batch"
        raise ValueError(f"task_loss needs logits and a target, but there are no {missing}.")
    if not isinstance(target, Tensor):  # a loss of the user's own may take it
        return _of_other_target(task_loss, logits, target)
    given = target.clone() if target.is_inference() else target  # which has no version to compare
    before = with_versions([given])
    try:
        term = _term(task_loss, logits, cast(Tensor, as_class_ids(_in_shape(task_loss, logits, given), logits)))
        if any_changed(before):
            raise ValueError(_CHANGED_TARGET.format(type(task_loss).__name__))
        return term
    except (IndexError, RuntimeError) as error:
        say_of_labels(error, "The task's own loss", target, logits)
        raise


def _in_shape(task_loss: nn.Module, logits: Tensor, target: Tensor) -> Tensor:
    """Return the target in the shape that a loss of torch's own wants; other losses get it as it is."""
    _check_probabilities(task_loss, target)
    if target.shape == logits.shape:
        if type(task_loss) is nn.CrossEntropyLoss and not target.is_floating_point():
            raise ValueError(
                f"task_loss CrossEntropyLoss reads a target {tuple(target.shape)} of the outputs' shape as "
                f"probabilities of the classes, but its type is {str(target.dtype).removeprefix('torch.')}. Of one-hot "
                "rows give the ids of the classes, target.argmax(1); of several labels a sample use BCEWithLogitsLoss."
            )
        return target
    if type(task_loss) in (nn.CrossEntropyLoss, nn.NLLLoss):
        check_classes_on_axis_1(task_loss, logits, target)
        return without_column(target, logits)
    if type(task_loss) not in _VALUE_BY_VALUE:
        return target
    shapes = {tuple(logits.shape), tuple(target.shape)}
    if shapes == {(logits.numel(),), (logits.numel(), 1)}:
        return target.reshape(logits.shape)
    try:
        torch.broadcast_shapes(logits.shape, target.shape)
    except RuntimeError:  # of which the loss tells
        return target
    raise ValueError(
        f"task_loss {type(task_loss).__name__} compares each output with a value of its own, but the outputs are of "
        f"shape {tuple(logits.shape)} and the target is of shape {tuple(target.shape)}, which torch would broadcast. "
        "Override unpack_batch to return a target of the outputs' shape."
    )


def _check_probabilities(task_loss: nn.Module, target: Tensor) -> None:
    """Raise a ``ValueError`` if a loss of probabilities gets whole numbers, which torch refuses in words of its own."""
    if type(task_loss) in (nn.BCELoss, nn.BCEWithLogitsLoss) and not target.is_floating_point():
        raise ValueError(
            f"task_loss {type(task_loss).__name__} compares probabilities, but the target is of type "
            f"{str(target.dtype).removeprefix('torch.')}. Give target.float(), from the data set or unpack_batch."
        )


def check_classes_on_axis_1(task_loss: object, logits: object, target: object, axis: int | None = None) -> None:
    """Refuse a loss of torch's own that reads the classes on axis 1 for scores (B, T, V) of tokens.

    Args:
        task_loss: The task's loss.
        logits: The scores.
        target: The target.
        axis: Which axis of the scores holds the classes, if the network tells: of as many tokens as classes both fit.

    Raises:
        ValueError: If the target has an id for each position (B, T), and the scores have other positions.
    """
    if type(task_loss) not in (nn.CrossEntropyLoss, nn.NLLLoss) or not isinstance(logits, Tensor):
        return
    if logits.ndim != 3 or not isinstance(target, Tensor) or target.is_floating_point():
        return
    if target.shape == logits.shape[:2] and (axis == 2 or logits.shape[1] != logits.shape[2]):
        name = type(task_loss).__name__
        raise ValueError(
            f"task_loss {name} reads the classes on axis 1, but the outputs are of shape {tuple(logits.shape)} and the "
            f"target is of shape {tuple(target.shape)}, as of tokens with the classes last. Leave task_loss out and "
            "write TokenKDLoss(cross_entropy=1.0), which adds it over the tokens, or task_loss='model' if the student "
            "computes its own loss; or give a task_loss of your own whose forward calls "
            "cross_entropy(logits.flatten(0, 1), target.flatten())."
        )


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


def labels_of(task_loss: nn.Module | CountsLabels | None, target: Any) -> Tensor | None:
    """Return what a mean of the task's loss is over, where that is not the rows: its labels, each with its weight.

    Example:
        >>> labels_of(nn.CrossEntropyLoss(ignore_index=255), torch.tensor([0, 255, 1]))
        tensor(2)
        >>> labels_of(nn.CrossEntropyLoss(weight=torch.tensor([0.5, 3.0])), torch.tensor([0, -100, 1]))
        tensor(3.5000)
    """
    if isinstance(task_loss, CountsLabels):
        return task_loss.labels(target)
    if not isinstance(task_loss, nn.CrossEntropyLoss | nn.NLLLoss) or task_loss.reduction != "mean":
        return None
    if not isinstance(target, Tensor) or target.is_floating_point():
        return None
    labelled = target != task_loss.ignore_index
    weights = task_loss.weight
    if weights is None:
        return torch.count_nonzero(labelled)  # the sum of truth values takes three times as long
    return weights[torch.where(labelled, target, 0).long()].mul(labelled).sum()


def of_all_labels(
    task: Tensor, task_loss: nn.Module | CountsLabels | None, target: Any
) -> tuple[Tensor, Tensor | None]:
    """Turn a task's mean over this process's labels into its share of the mean over the labels of all processes.

    See ``share_of_all``. Every process must call this once in a step.

    Returns:
        The share, and over how much the mean is, on average over the processes; ``None`` if it is over the rows.
    """
    count = labels_of(task_loss, target)
    return (task, None) if count is None else share_of_all(task, count)


def count_of_labels(task_loss: nn.Module | CountsLabels | None, target: Any, rows: int) -> int:
    """Return what a mean of the task's loss on validation data is over: the labels, where it leaves some out, or rows.

    Class weights are not looked at; ``labels_of`` adds them up.

    Args:
        task_loss: The task's loss.
        target: The target of the batch.
        rows: How many samples the student was called with.

    Example:
        >>> count_of_labels(nn.CrossEntropyLoss(ignore_index=255), torch.tensor([0, 255, 1]), rows=3)
        2
    """
    if isinstance(task_loss, CountsLabels):
        return task_loss.count(target, rows)
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
