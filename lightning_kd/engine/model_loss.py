"""The task's loss that a student computes itself."""

from collections.abc import Mapping
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor, nn

from lightning_kd.capture.batch import Batch, read_if_known
from lightning_kd.capture.call import Call
from lightning_kd.capture.columns import is_of_transformers
from lightning_kd.capture.documents import document_starts
from lightning_kd.capture.hooks import Capture
from lightning_kd.capture.networks import device_of, original
from lightning_kd.capture.padding import has_left_pads
from lightning_kd.capture.probe import is_shared_out, probing
from lightning_kd.engine.mean_of_loss import (
    CountsLabels,
    Found,
    Mean,
    Over,
    agreed,
    find_mean,
    is_of_positions,
    mean_of_module,
)
from lightning_kd.engine.step import TrainingStep
from lightning_kd.losses.tokens.order import order_of
from lightning_kd.metrics.task import IGNORE_INDEX

_FACTORS = ("router_aux_loss_coef", "aux_loss_coef")
"""How transformers call the factor of a router's loss."""
_NO_MODULE = "no module"
"""In the place of the task's loss under the callback, where the user's own step holds it."""
_OVER_LABELS = ("ForCausalLM", "ForMaskedLM", "ForTokenClassification", "ForConditionalGeneration")
"""Losses of transformers that are means over all labels of a batch, by the name that a model gives its loss."""


def check_task_loss(task_loss: nn.Module | str | None, *, alone: bool) -> None:
    """Raise a ``ValueError`` unless a task's loss is a module, ``"model"`` or none; it cannot be none alone."""
    if alone and task_loss is None:
        raise ValueError("There is nothing to train with: pass teacher and losses, or task_loss, or both.")
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

    It also knows what a task's loss is a mean over that is a module or a function of the user's own.

    Args:
        student: The student.
    """

    def __init__(self, student: nn.Module) -> None:
        self.student = student
        self._told = False
        self._looks = 20
        self._mean: Mean | None = None
        self._settled = False
        self._of_module: Over | None = None

    def prepare(self, step: TrainingStep, task_loss: nn.Module | str | None, batch: Any) -> None:
        """Find out over what a task's loss of somebody's own is a mean, as every process does now.

        Args:
            step: Calls the student.
            task_loss: The student's own loss, or a module.
            batch: A small batch.
        """
        if self._is_known(task_loss):
            return
        read = read_if_known(step.hooks, batch)
        output = None
        if not isinstance(task_loss, str) and is_of_positions(read.target):
            with step.capture.pausing(), probing(self.student, nullcontext, plain=True):
                output = step.capture.call(*read.args, **read.kwargs)
        found = agreed(self._mean_of(step, task_loss, read, output), device_of(self.student))
        self._take(task_loss, found)
        by_class = isinstance(task_loss, str) and self.labels(read.target) is not None
        if found.mean is None and is_of_positions(read.target) and not by_class:
            rank_zero_info(
                "The task's loss is neither a mean over the labels of all positions nor one over samples, as far as "
                "the first samples show. So its values in the log weigh each batch by its rows, and change with the "
                "batch size."
            )

    def settle(self, step: TrainingStep, task_loss: nn.Module | str, call: Call, target: Any) -> None:
        """Find out the same in an evaluation, unless a fit has done so.

        Args:
            step: Calls the student.
            task_loss: The student's own loss, or a module.
            call: A call of the student.
            target: The target of the batch.
        """
        if not self._is_known(task_loss):
            read = Batch(call.args, call.kwargs, target)
            self._take(task_loss, self._mean_of(step, task_loss, read, call.output))

    def _is_known(self, task_loss: nn.Module | str | None) -> bool:
        return self._settled or task_loss is None or isinstance(task_loss, nn.CrossEntropyLoss | nn.NLLLoss)

    def _take(self, task_loss: nn.Module | str | None, found: Found) -> None:
        self._settled = True
        if isinstance(task_loss, str):
            self._mean = found.mean
            return
        told = getattr(task_loss, "ignore_index", None)
        if found.mean is not None:
            self._of_module = Over(found.mean, found.ignored)
        elif isinstance(told, int):  # which says that labels are left out
            self._of_module = Over("labels", told)

    def _mean_of(self, step: TrainingStep, task_loss: nn.Module | str | None, read: Batch, output: Any) -> Found:
        """Find what a loss is a mean over by calls without a trace."""
        target = read.target
        if task_loss is not None and not isinstance(task_loss, str):  # a module, or any function
            logits = step.hooks.logits_of(output) if is_of_positions(target) else None
            return Found() if logits is None or target is None else mean_of_module(task_loss, logits, target)
        key = next((name for name, value in read.kwargs.items() if value is target), None)
        if target is None or key is None or not self._may_mark(target) or is_shared_out(self.student):
            return Found()
        with step.capture.pausing(), probing(self.student, nullcontext, plain=True):
            return Found(find_mean(partial(self._alone, step.capture), read.kwargs, key, self._ignored(target)))

    def _ignored(self, target: Tensor) -> int:
        """Return what stands for no label: models of transformers say it for maps of labels."""
        told = getattr(getattr(original(self.student), "config", None), "semantic_loss_ignore_index", None)
        return told if isinstance(told, int) and target.ndim == 3 else IGNORE_INDEX

    def _may_mark(self, target: Any) -> bool:
        """Whether more labels may be marked as none: an accelerator does not outlive an id that is out of range."""
        if not is_of_positions(target):
            return False
        known = is_of_transformers(original(self.student)) or bool((target == self._ignored(target)).any())
        return target.is_cpu or known

    def _alone(self, capture: Capture, kwargs: Mapping[str, Any]) -> Tensor | None:
        """Return the loss of a call without that of a router, ``None`` without one."""
        try:
            output = capture.call(**kwargs)
        except Exception:  # the model takes no other number of rows, so its class tells
            return None
        loss, router = own_loss(output), self.router(output)
        loss = None if loss is None else loss.detach().double().mean()
        return loss if loss is None or router is None else loss - router

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
        loss = loss if loss.ndim == 0 else loss.mean()
        count = self.labels(read.target)
        # the mean of no label is NaN
        return loss if count is None else torch.where(count > 0, loss, loss.nan_to_num(0.0, 0.0, 0.0))

    def unless(self, task_loss: nn.Module | str | None) -> nn.Module | CountsLabels | None:
        """Return what knows over how much ``task_loss`` is a mean: this, or the module that was given."""
        return self if isinstance(task_loss, str) else self._of_module or task_loss

    def _tell(self, read: Batch) -> None:
        """Say once that the first token after padding on the left is predicted from the padding.

        And that the first of a document is predicted from the document before.
        """
        mask, labels = read.kwargs.get("attention_mask"), read.target
        if not self.is_shifted or not isinstance(labels, Tensor):
            return
        given = read.kwargs.get("position_ids")
        starts = document_starts(given, mask, labels.shape) if isinstance(given, Tensor) and given.ndim == 2 else None
        if starts is not None and bool((starts & (labels != IGNORE_INDEX)).any()):
            self._told = True
            rank_zero_warn(
                "The student's own loss (task_loss='model') also counts the first token of each document in a row of "
                "several, which it predicts from the document before. Label that token -100."
            )
        if not has_left_pads(mask):
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
        student = original(self.student)
        if self._mean in ("labels", "next labels"):
            return self._mean == "next labels"
        loss_type = getattr(student, "loss_type", None)
        if loss_type == "ForConditionalGeneration":  # of images and text, if it is no encoder-decoder
            return not getattr(getattr(student, "config", None), "is_encoder_decoder", False)
        return loss_type == "ForCausalLM" or (loss_type is None and bool(order_of(student).predicts_next))

    def labels(self, target: Any) -> Tensor | None:
        """Return how many labels the mean in the loss is over, ``None`` if that is not known or it is over rows."""
        loss_type = getattr(original(self.student), "loss_type", None)
        over_labels = self._mean != "rows" and (self._mean is not None or loss_type in _OVER_LABELS or self.is_shifted)
        return self._labelled(target) if over_labels and is_of_positions(target) else None

    def router(self, output: Any) -> Tensor | None:
        """Return what the loss of a router of experts adds to the loss in an output, ``None`` without one."""
        student = original(self.student)
        found = output.get("aux_loss") if isinstance(output, Mapping) else getattr(output, "aux_loss", None)
        config = getattr(student, "config", None)
        holders = (student, config, getattr(config, "text_config", None))  # the last of models of images and text
        factors = (getattr(one, name, None) for one in holders for name in _FACTORS)
        factor = next((one for one in factors if one is not None), None)
        if not isinstance(found, Tensor) or not isinstance(factor, int | float):
            return None
        return factor * found.detach()

    def _labelled(self, target: Tensor) -> Tensor:
        return ((target[:, 1:] if self.is_shifted else target) != self._ignored(target)).sum()

    def count(self, target: Any, rows: int) -> int:
        """Return what the mean in the loss is over: the labels, or else the rows of a call."""
        labels = self.labels(target)
        return rows if labels is None else int(labels)


def tell_of_router(student: nn.Module, output: Any, hooks: object) -> None:
    """Say that the loss of a student's router of experts does not train, where only the student's own loss holds it."""
    task_loss = getattr(hooks, "task_loss", _NO_MODULE)
    if task_loss not in ("model", _NO_MODULE) and ModelLoss(student).router(output) is not None:
        rank_zero_info(
            "The student computes a loss of its router (output_router_logits=True), which does not train: it is a part "
            "of the student's own loss, task_loss='model'."
        )


def own_loss(output: Any) -> Tensor | None:
    """Return the loss in a model's output, ``None`` if it holds none."""
    loss = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
    return loss if isinstance(loss, Tensor) else None
