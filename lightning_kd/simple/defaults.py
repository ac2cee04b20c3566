"""What ``distill`` chooses where the user leaves it open, by the outputs of the networks and the target."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_kd.losses import EmbeddingLoss, KDLoss, MultiLabelKDLoss, RegressionKDLoss, TokenKDLoss
from lightning_kd.losses.base import DistillationLoss
from lightning_kd.metrics.comparison import Comparison
from lightning_kd.metrics.task import Kind, Task

TaskLoss = nn.Module | Literal["auto", "model"] | None
_ASK = (
    "distill: what the task is cannot be told from outputs {outputs} and a target {target}. Give task_loss=, such as "
    "torch.nn.CrossEntropyLoss(), MSELoss() or BCEWithLogitsLoss(), and losses=; or task_loss=None to distil without "
    "labels."
)


@dataclass(frozen=True, slots=True)
class Choice:
    """Losses with the task's own loss and its weight."""

    losses: Sequence[DistillationLoss]
    task_loss: nn.Module | Literal["model"] | None
    task_weight: float


def choose(
    losses: Sequence[DistillationLoss] | None,
    task_loss: TaskLoss,
    task_weight: float | None,
    logits: Tensor | None,
    target: Any,
) -> Choice:
    """Return losses and task, where a user has left them open.

    Of classes the student learns by Hinton's loss at temperature 4 with weight 0.9, and by the labels with weight 0.1,
    as RepDistiller and torchdistill configure it. Of other tasks both have weight 0.5.

    Args:
        losses: The user's losses, ``None`` if they are left open.
        task_loss: The user's, ``"auto"`` if it is left open.
        task_weight: The user's, ``None`` if it is left open.
        logits: The student's logits of two samples, ``None`` if they are not known.
        target: Their target, ``None`` without one.

    Raises:
        ValueError: If the task cannot be told.

    Example:
        >>> found = choose(None, "auto", None, torch.zeros(2, 3), torch.tensor([0, 2]))
        >>> found.losses[0].temperature, found.task_loss, found.task_weight
        (4.0, CrossEntropyLoss(), 0.1)
        >>> choose(None, "auto", None, torch.zeros(2, 3), None).task_loss is None
        True
    """
    if losses is not None and task_loss != "auto":
        return Choice(losses, task_loss, 1.0 if task_weight is None else task_weight)
    kind = _kind(task_loss, logits, target)
    tokens = kind == "classes" and logits is not None and logits.ndim == 3
    made, own = _of_kind(kind, tokens=tokens, labelled=target is not None and task_loss is not None)
    chosen = own if task_loss == "auto" else task_loss
    default_weight = 1.0 if losses is not None else 0.1 if kind == "classes" else 0.5
    weight = default_weight if task_weight is None else task_weight
    return Choice(made if losses is None else losses, chosen, weight)


def _kind(task_loss: TaskLoss, logits: Tensor | None, target: Any) -> Kind:
    if isinstance(task_loss, nn.Module):
        kind = Task.of_loss(task_loss).kind
        if kind is not None and kind != "other":
            return kind
    if logits is None or (target is not None and not isinstance(target, Tensor)):
        raise ValueError(_ASK.format(outputs=_shape(logits), target=_shape(target)))
    found = Comparison().kind_of(logits, target)[0]
    if found is None and target is not None and target.is_floating_point() and target.shape[:1] == logits.shape[:1]:
        found = _of_floats(logits, target)
    if found is None:
        raise ValueError(_ASK.format(outputs=_shape(logits), target=_shape(target)))
    return found


def _of_floats(logits: Tensor, target: Tensor) -> Kind | None:
    """Return what floating targets are: values, unless they are 0 and 1, which may be labels and may be values."""
    if target.numel() != logits.numel() or bool(((target == 0) | (target == 1)).all()):
        return None
    return "regression"


def _of_kind(kind: Kind, *, tokens: bool, labelled: bool) -> tuple[list[DistillationLoss], nn.Module | None]:
    """Return losses for a kind of task, and the task's own."""
    if tokens:  # the labels of tokens are read by the loss itself, which knows masks and shifts
        return [TokenKDLoss(cross_entropy=0.5 if labelled else 0.0)], None
    weight = 0.5 if labelled else 1.0
    if kind == "multilabel":
        return [MultiLabelKDLoss(weight=weight)], nn.BCEWithLogitsLoss() if labelled else None
    if kind == "regression":
        return [RegressionKDLoss(weight=weight)], nn.MSELoss() if labelled else None
    if kind == "embeddings":
        return [EmbeddingLoss("<output>", "<output>", weight=weight)], None
    weight = 0.9 if labelled else 1.0
    return [KDLoss(temperature=4.0, weight=weight)], nn.CrossEntropyLoss() if labelled else None


def optimizer_of(parameters: Any) -> torch.optim.Optimizer:
    """Return AdamW with a learning rate of 0.001, which suits most small networks."""
    return torch.optim.AdamW(parameters, lr=1e-3)


def _shape(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"of shape {tuple(value.shape)} and type {str(value.dtype).removeprefix('torch.')}"
    return "that are not known" if value is None else f"of type {type(value).__name__}"
