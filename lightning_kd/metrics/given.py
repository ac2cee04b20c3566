"""Metrics that a user gives: each is computed for the student and for the teacher."""

import copy
from collections.abc import Mapping, Sequence
from typing import TypeAlias, cast

import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection

from lightning_kd.metrics.against_teacher import AgainstTeacher
from lightning_kd.metrics.task import IGNORE_INDEX, without_column

Metrics: TypeAlias = Metric | MetricCollection | Sequence[Metric] | Mapping[str, Metric] | None
"""One metric, a collection, a list, or metrics by name."""


class GivenMetrics:
    """Computes a user's metrics of the student, and of the teacher under ``teacher_`` and the same name.

    Metrics of the student against the teacher, such as ``NegativeFlips``, are computed once, of both networks' outputs.

    The metrics are copied, so those that are given stay as they are.

    The metrics of ``torchmetrics.classification`` get probabilities: the sigmoid of the outputs if their names begin
    with ``Binary`` or ``Multilabel``, the softmax over axis 1 if they begin with ``Multiclass``. Torchmetrics 1.9
    itself takes scores for probabilities if all of a batch are in [0, 1], so its numbers would depend on the size of
    the batches. Rows that are distributions over the classes already, as of a network that ends in a softmax, stay
    as they are. Float labels of ``Binary`` and ``Multilabel`` metrics become integers if they are whole. All
    other metrics, also subclasses of the user's own, get the outputs and the target as they are.

    Of tokens (B, T, V) the metrics of torchmetrics and of this package get the pairs that the package itself compares,
    if it is known what a position predicts: the logits of a causal model with the tokens after them, and padding as
    their ``ignore_index``, if they have one. Metrics of the user's own may shift themselves, and get what there is.

    Args:
        metrics: Metrics by name, see ``name_metrics``.
        probabilities: Whether the outputs are probabilities, as ``BCELoss`` wants them; no sigmoid is taken then.

    Example:
        >>> import torch
        >>> from torchmetrics.regression import MeanAbsoluteError
        >>> given = GivenMetrics(name_metrics({"mae": MeanAbsoluteError()}))
        >>> given.update(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 1.0]), torch.tensor([0.0, 2.0]))
        >>> {name: float(metric.compute()) for name, metric in given.updated().items()}
        {'mae': 0.5, 'teacher_mae': 1.0}
    """

    def __init__(self, metrics: Mapping[str, Metric], *, probabilities: bool = False) -> None:
        self._probabilities = probabilities
        self._metrics = {
            role + name: copy.deepcopy(metric)
            for name, metric in metrics.items()
            for role in (("",) if isinstance(metric, AgainstTeacher) else ("", "teacher_"))
        }
        for metric in self._metrics.values():
            metric.reset()

    def update(
        self,
        student: Tensor | None,
        teacher: Tensor | None,
        target: object,
        predicted: Tensor | None = None,
        *,
        shift: bool = False,
    ) -> None:
        """Give each metric (outputs, target), or (student, teacher, target); whatever is ``None`` is left out.

        Args:
            student: The student's outputs.
            teacher: The teacher's outputs.
            target: What both are compared with.
            predicted: The token (B, T) that each position of logits (B, T, V) predicts, -100 where there is none;
                ``None`` if that is not known.
            shift: Whether that is the token after the position.

        Raises:
            ValueError: If a metric cannot be computed of them; names it, and their shapes.
        """
        for name, metric in self._metrics.items():
            outputs = teacher if name.startswith("teacher_") else student
            if outputs is None:
                continue
            if metric.device != outputs.device:
                metric.to(outputs.device)
            try:
                known = predicted is not None and shifts_for(metric)
                if not isinstance(metric, AgainstTeacher):
                    if target is None:
                        continue
                    given, labels = outputs.detach(), target
                    if known:
                        given, labels = _of_tokens(metric, given, cast(Tensor, target), cast(Tensor, predicted), shift)
                    metric.update(*self._as_torchmetrics_wants(metric, given, labels))
                elif teacher is not None and (target is not None or not metric.needs_target):
                    ours, its, ids = outputs, teacher, cast(Tensor | None, target)
                    if known and ids is not None and teacher.shape == outputs.shape:
                        its, _ = _of_tokens(metric, teacher, ids, cast(Tensor, predicted), shift)
                        ours, ids = _of_tokens(metric, outputs, ids, cast(Tensor, predicted), shift)
                    metric.update(ours, its, ids)
            except (ValueError, RuntimeError, TypeError, IndexError) as error:
                of = f"of shape {tuple(target.shape)}" if isinstance(target, Tensor) else type(target).__name__
                raise ValueError(
                    f"metrics: {type(metric).__name__} ({name!r}) cannot compare outputs of shape "
                    f"{tuple(outputs.shape)} with a target {of}: {error}"
                ) from error

    def _as_torchmetrics_wants(self, metric: Metric, outputs: Tensor, target: object) -> tuple[Tensor, object]:
        kind = _kind_of(metric)
        if not kind or not isinstance(target, Tensor):
            return outputs, target
        if kind == "Multiclass":
            target = without_column(target, outputs)
            of_ids = target.ndim + 1 == outputs.ndim
            return (_distributions(outputs) if of_ids and outputs.is_floating_point() else outputs), target
        if target.is_floating_point() and torch.equal(target, target.round()):
            target = target.long()
        if self._probabilities or not outputs.is_floating_point():
            return outputs, target
        return _exact(outputs).sigmoid(), target

    def updated(self) -> dict[str, Metric]:
        """Return the metrics that have data, by name."""
        return {name: metric for name, metric in self._metrics.items() if metric.update_called}


def shifts_for(metric: Metric) -> bool:
    """Whether a metric gets shifted pairs of a causal model: one of torchmetrics or of this package, not a user's."""
    return type(_inside(metric)).__module__.partition(".")[0] in ("torchmetrics", __name__.partition(".")[0])


def _inside(metric: Metric) -> Metric:
    """Return the metric in a wrapper of torchmetrics, or the metric itself."""
    if not type(metric).__module__.startswith("torchmetrics.wrappers"):
        return metric
    inside = next((child for child in metric.children() if isinstance(child, Metric)), None)
    return metric if inside is None else _inside(inside)


def _of_tokens(
    metric: Metric, outputs: Tensor, target: Tensor, predicted: Tensor, shift: bool
) -> tuple[Tensor, Tensor]:
    """Return logits of tokens with what they predict, as a metric reads them.

    Args:
        metric: The metric; those of ``torchmetrics.classification`` read the classes on axis 1.
        outputs: The logits (B, T, V).
        target: The labels (B, T) as the batch gives them.
        predicted: The token that each position predicts, -100 where there is none.
        shift: Whether that is the token after the position.
    """
    if outputs.shape[:-1] != predicted.shape:
        return outputs, target
    labels = target.to(predicted.device)
    if shift:
        outputs, labels, predicted = outputs[:, :-1], labels[:, 1:], predicted[:, :-1]
    mark = getattr(_inside(metric), "ignore_index", None)
    ignored = torch.full_like(labels, mark) if isinstance(mark, int) else labels
    ids = torch.where(predicted == IGNORE_INDEX, ignored, predicted)
    return (outputs.movedim(-1, 1) if _kind_of(metric) == "Multiclass" else outputs), ids


def _kind_of(metric: Metric) -> str:
    """Return "Binary", "Multilabel" or "Multiclass" for torchmetrics' own metrics of classification, else ""."""
    metric = _inside(metric)
    if not type(metric).__module__.startswith("torchmetrics.classification"):
        return ""
    kinds = ("Binary", "Multilabel", "Multiclass")
    return next((kind for kind in kinds if type(metric).__name__.startswith(kind)), "")


def _distributions(outputs: Tensor) -> Tensor:
    """Return the softmax over axis 1, and rows that are distributions already as they are."""
    rounding = 16 * torch.finfo(outputs.dtype).eps
    values = _exact(outputs)
    ready = (values >= 0).all(dim=1, keepdim=True) & ((values.sum(dim=1, keepdim=True) - 1).abs() <= rounding)
    return torch.where(ready, values, values.softmax(dim=1))


def _exact(outputs: Tensor) -> Tensor:
    """Return values of 16 bits in 32, so that a score near 0 does not round to a probability of one half."""
    return outputs.float() if outputs.dtype in (torch.float16, torch.bfloat16) else outputs


def name_metrics(metrics: Metrics) -> dict[str, Metric]:
    """Return metrics by name: their own, those of a collection, or the names of their classes.

    Args:
        metrics: One metric, a collection, a list, or metrics by name.

    Raises:
        TypeError: If something else is among them.
        ValueError: If two have the same name.

    Example:
        >>> from torchmetrics.regression import MeanAbsoluteError
        >>> list(name_metrics([MeanAbsoluteError()]))
        ['MeanAbsoluteError']
    """
    if metrics is None:
        return {}
    if isinstance(metrics, MetricCollection):
        named = [(str(name), metric) for name, metric in metrics.items(keep_base=False, copy_state=False)]
    elif isinstance(metrics, Mapping):
        named = list(metrics.items())
    else:
        several = [metrics] if isinstance(metrics, Metric) else list(metrics)
        named = [(type(metric).__name__, metric) for metric in several]
    for name, metric in named:
        if not isinstance(metric, Metric):
            raise TypeError(f"metrics: expected torchmetrics, but {name!r} is a {type(metric).__name__}.")
    names = [name for name, _ in named]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"metrics: two have the name {twice[0]!r}; give a dictionary of names.")
    return dict(named)
