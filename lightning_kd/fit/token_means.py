"""Means over tokens on validation and test data: the losses of tokens, and the perplexity of both networks."""

from collections.abc import Callable

from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor, nn
from torchmetrics import Metric

from lightning_kd.capture.batch import Batch
from lightning_kd.capture.documents import document_starts
from lightning_kd.capture.networks import original
from lightning_kd.engine.model_loss import ModelLoss
from lightning_kd.engine.step import TrainingStep
from lightning_kd.losses.base import DistillationLoss, StepTensors
from lightning_kd.losses.tokens.mean import TokenMean
from lightning_kd.losses.tokens.order import Order, order_of
from lightning_kd.losses.tokens.selection import IGNORE_INDEX, choose, counting_positions, predicted
from lightning_kd.losses.tokens.token_kd import TokenKDLoss
from lightning_kd.losses.tokens.uld import ULDLoss
from lightning_kd.metrics.counts import WeightedMean
from lightning_kd.metrics.tokens import Perplexity, mean_negative_log_likelihood

_NO_LANGUAGE = ("ForTokenClassification", "ForQuestionAnswering")


class TokenMeans:
    """Which tokens of an evaluation count, and the means over them.

    Args:
        step: The training step, with the losses and both networks.
    """

    def __init__(self, step: TrainingStep) -> None:
        self.step = step
        self._metrics: dict[int, dict[str, Metric]] = {}
        self._told = False
        self._told_beyond: set[str] = set()
        self._has_seen = False
        self.own_loss = False
        """Whether the task's loss is the one that the student computes itself."""
        self.shift = False
        """Whether the positions of the last batch predict the token after them, where :meth:`target` knows of any."""
        self.positions: Tensor | None = None
        """The positions that the student was told."""

    def start(self, *, in_fit: bool) -> None:
        """Begin an evaluation anew.

        Args:
            in_fit: Whether a fit has set the losses up.
        """
        self._metrics = {}
        if not in_fit and not self._has_seen:
            self._has_seen = True
            teacher = None if self.step.teacher is None else self.step.teacher.layered
            for loss in self._losses().values():
                loss.see_networks(original(self.step.student), None if teacher is None else original(teacher))

    def target(self, read: Batch, target: Tensor | None, logits: Tensor | None) -> Tensor | None:
        """Return the token that each position predicts, -100 where there is none; ``None`` if that is not known."""
        found = self._counting(read, target, logits)
        if found is None or target is None:
            return None
        self.shift, counts = found
        ids = predicted(target.to(counts.device), self.shift, IGNORE_INDEX)
        return ids.masked_fill(~counts, IGNORE_INDEX)

    def update(
        self,
        loader: int,
        read: Batch,
        tensors: Callable[[], StepTensors],
        logits: tuple[Tensor | None, Tensor | None],
        *,
        target: Tensor | None,
        with_teacher: bool,
        with_total: bool,
    ) -> dict[str, Metric]:
        """Count one batch, and return the metrics that it has changed, by name.

        Args:
            loader: Number of the data loader.
            read: The batch taken apart.
            tensors: Returns what the losses read.
            logits: The logits of student and teacher.
            target: What :meth:`target` has returned, ``None`` if nothing is known of what positions predict.
            with_teacher: Whether to compute what does not change with the student.
            with_total: Whether to add up the whole loss, where all of it is means over tokens.
        """
        metrics = self._metrics.setdefault(loader, {})
        known = bool(read.args or read.kwargs) and bool(self._losses())
        updated = self._losses_of(metrics, tensors(), with_total=with_total) if known else {}
        student, teacher = logits
        if target is None or type(original(self.step.student)).__name__.endswith(_NO_LANGUAGE):
            return updated
        sides = {"perplexity": student, "teacher_perplexity": teacher if with_teacher else None}
        counts = target != IGNORE_INDEX
        ids = choose(target, counts, axes=0).long()
        for name, scores in sides.items():
            if not isinstance(scores, Tensor) or scores.shape[:-1] != target.shape:
                continue  # stored probabilities of some tokens, or tokens of its own
            metric = _of(metrics, name, Perplexity, scores)
            beyond = len(ids) and int(ids.max()) >= scores.shape[-1]
            if beyond:
                self._tell_beyond(name, int(ids.max()), scores.shape[-1])
                value = scores.new_tensor(float("inf"))
            else:
                value = mean_negative_log_likelihood(choose(scores.detach(), counts), ids)
            metric.update(value, counts.sum())
            updated[name] = metric
        return updated

    def _tell_beyond(self, name: str, token: int, size: int) -> None:
        if name not in self._told_beyond:
            self._told_beyond.add(name)
            rank_zero_warn(
                f"The labels hold the token {token}, but the {'teacher' if 'teacher' in name else 'student'} knows "
                f"{size} tokens and can never predict it, so {name} is infinite."
            )

    def _losses(self) -> dict[str, DistillationLoss]:
        active = self.step.objective.main(self.step.teacher_ready).active
        return {name: loss for name, loss in active if isinstance(loss, TokenMean)}

    def _losses_of(self, metrics: dict[str, Metric], tensors: StepTensors, *, with_total: bool) -> dict[str, Metric]:
        if tensors.student_logits is None or (tensors.teacher_logits is None and tensors.sparse is None):
            return {}
        objective, updated = self.step.objective, {}
        goal = objective.main(self.step.teacher_ready)
        parts: dict[str, Tensor] = {}
        counts: dict[str, Tensor] = {}
        for name, loss in self._losses().items():
            needs_target = loss.needs_target or (isinstance(loss, TokenKDLoss) and bool(loss.cross_entropy))
            if tensors.target is None and needs_target:
                continue
            before = loss.details
            loss.details = {}
            parts[name] = loss.evaluate(tensors)
            assert loss.counted is not None, "it is a mean over tokens"
            counts[name] = loss.counted
            for detail, value in loss.details.items():
                metric = _of(metrics, f"{name}/{detail}", WeightedMean, value)
                metric.update(value, loss.counted)
                updated[f"{name}/{detail}"] = metric
            loss.details = before
        for name, value in parts.items():
            metric = updated[name] = _of(metrics, name, WeightedMean, value)
            metric.update(value, counts[name])
        if with_total and parts and set(parts) == set(goal.components):
            first, *others = counts.values()
            if all(bool(other == first) for other in others):
                total = objective.total(goal, parts)
                updated["loss"] = _of(metrics, "loss", WeightedMean, total)
                updated["loss"].update(total, first)
        return updated

    def _counting(self, read: Batch, target: Tensor | None, logits: Tensor | None) -> tuple[bool, Tensor] | None:
        """Return whether a position predicts the token after it, and which count; ``None`` if that is not known."""
        if not isinstance(target, Tensor) or logits is None or logits.ndim != 3 or target.shape != logits.shape[:-1]:
            return None  # detectors are given a dictionary of labels for each image
        if target.is_floating_point() or target.is_complex() or logits.shape[-1] < 2:
            return None
        losses = self.step.objective.components  # those that wait for a teacher tell it too
        of_losses = [loss for loss in losses if isinstance(loss, TokenKDLoss)]
        orders = {loss.order for loss in of_losses}
        of_two = [loss for loss in losses if isinstance(loss, ULDLoss)]
        orders = orders or {loss.order for loss in of_two}
        if not orders and (self.own_loss or order_of(original(self.step.student)).predicts_next):
            orders = {self._own_order()}
        if len(orders) != 1:
            return None
        (order,) = orders
        if order.predicts_next is None:
            return None
        labels = target.to(logits.device)
        for mark in {loss.ignore_index for loss in of_losses}:
            labels = labels.masked_fill(labels == mark, IGNORE_INDEX)
        mask = self.step.mask_of_output(read)
        unread = order.mask_is_of_input and (order.predicts_next or not of_losses)
        if mask is not None and mask.ndim == 1 and len(mask) == len(target):
            mask = mask[:, None].expand_as(target)
        elif mask is not None and (unread or mask.shape != target.shape or not (of_losses or of_two)):
            mask = None
        shift = order.predicts_next
        counts = counting_positions(
            "Evaluation",
            target.shape,
            labels=labels,
            mask=None if mask is None else mask.to(logits.device),
            shift=shift,
            device=logits.device,
            starts=document_starts(self.positions, read.mask, target.shape),
        )
        assert counts is not None, "there are labels"
        return shift, counts

    def _own_order(self) -> Order:
        student: nn.Module = original(self.step.student)
        return Order(True) if ModelLoss(student).is_shifted else order_of(student)

    def without_router(self, output: object, task: Tensor, count: int, loader: int) -> tuple[Tensor, Metric | None]:
        """Return the task's mean over tokens alone, and the mean of what a router of experts adds to it."""
        router = ModelLoss(self.step.student).router(output)
        if router is None:
            return task, None
        if not self._told:
            self._told = True
            rank_zero_info(
                "The student's own loss (task_loss='model') holds the loss of its router, once. It trains as a part of "
                "the task; on validation and test data it is logged apart, as 'router'."
            )
        metric = _of(self._metrics.setdefault(loader, {}), "router", WeightedMean, router)
        metric.update(router, router.new_tensor(count))
        return task - router, metric


def _of(metrics: dict[str, Metric], name: str, kind: type[WeightedMean], value: Tensor) -> Metric:
    if name not in metrics:
        metrics[name] = kind().to(value.device)
    return metrics[name]
