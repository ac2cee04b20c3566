"""Metrics that a user gives: each is computed for the student and for the teacher."""

import copy
from collections.abc import Mapping, Sequence
from typing import TypeAlias, cast

import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection

from lightning_kd.metrics.against_teacher import AgainstTeacher
from lightning_kd.metrics.task import without_column

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

    def update(self, student: Tensor | None, teacher: Tensor | None, target: object) -> None:
        """Give each metric (outputs, target), or (student, teacher, target); whatever is ``None`` is left out.

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
                if not isinstance(metric, AgainstTeacher):
                    if target is not None:
                        metric.update(*self._as_torchmetrics_wants(metric, outputs.detach(), target))
                elif teacher is not None and (target is not None or not metric.needs_target):
                    metric.update(outputs, teacher, cast(Tensor | None, target))
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


def _kind_of(metric: Metric) -> str:
    """Return "Binary", "Multilabel" or "Multiclass" for torchmetrics' own metrics of classification, else ""."""
    if type(metric).__module__.startswith("torchmetrics.wrappers"):
        inside = next((child for child in metric.children() if isinstance(child, Metric)), None)
        return "" if inside is None else _kind_of(inside)
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
