"""Metrics that a user gives: each is computed for the student and for the teacher."""

import copy
from collections.abc import Mapping, Sequence
from typing import TypeAlias

from torch import Tensor
from torchmetrics import Metric, MetricCollection

Metrics: TypeAlias = Metric | MetricCollection | Sequence[Metric] | Mapping[str, Metric] | None
"""One metric, a collection, a list, or metrics by name."""


class GivenMetrics:
    """Computes a user's metrics of the student, and of the teacher under ``teacher_`` and the same name.

    The metrics are copied, so those that are given stay as they are.

    Args:
        metrics: Metrics by name, see ``name_metrics``.

    Example:
        >>> import torch
        >>> from torchmetrics.regression import MeanAbsoluteError
        >>> given = GivenMetrics(name_metrics({"mae": MeanAbsoluteError()}))
        >>> given.update(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 1.0]), torch.tensor([0.0, 2.0]))
        >>> {name: float(metric.compute()) for name, metric in given.updated().items()}
        {'mae': 0.5, 'teacher_mae': 1.0}
    """

    def __init__(self, metrics: Mapping[str, Metric]) -> None:
        self._metrics = {
            role + name: copy.deepcopy(metric) for name, metric in metrics.items() for role in ("", "teacher_")
        }
        for metric in self._metrics.values():
            metric.reset()

    def update(self, student: Tensor | None, teacher: Tensor | None, target: object) -> None:
        """Give each metric (outputs, target); whatever is ``None`` is left out.

        Raises:
            ValueError: If a metric cannot be computed of them; names it, and their shapes.
        """
        if target is None:
            return
        for name, metric in self._metrics.items():
            outputs = teacher if name.startswith("teacher_") else student
            if outputs is None:
                continue
            if metric.device != outputs.device:
                metric.to(outputs.device)
            try:
                metric.update(outputs.detach(), target)
            except (ValueError, RuntimeError, TypeError, IndexError) as error:
                of = f"of shape {tuple(target.shape)}" if isinstance(target, Tensor) else type(target).__name__
                raise ValueError(
                    f"metrics: {type(metric).__name__} ({name!r}) cannot compare outputs of shape "
                    f"{tuple(outputs.shape)} with a target {of}: {error}"
                ) from error

    def updated(self) -> dict[str, Metric]:
        """Return the metrics that have data, by name."""
        return {name: metric for name, metric in self._metrics.items() if metric.update_called}


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
