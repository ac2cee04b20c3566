"""How alike the layers of both networks are: CKA of each pair, on a few batches."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_kd.capture.private import version_of
from lightning_kd.capture.trace import Ran, Trace
from lightning_kd.engine.stages import find_stages
from lightning_kd.metrics import LinearCKA

_STAGES, _LAYERS = 5, 8
"""How many stages of a network are looked at, and how many layers together with those that the losses read."""
_WIDEST = 65536
"""The widest layer that is looked at."""

Answer = Callable[[int], tuple[Tensor | None, int]]
"""Calls a network on the batch of that number, and returns its output and how many samples that was."""


class Likeness:
    """Debiased linear CKA between the layers of two networks.

    Layers are the ends of the stages and those that the losses read. Maps are averaged over their places and tokens
    over their positions, so that a layer has one row of features for each sample.

    Args:
        student: The student.
        teacher: The network whose layers count.
        read: The names of the layers that the losses read, of the student and of the teacher.
    """

    def __init__(self, student: nn.Module, teacher: nn.Module, read: tuple[Iterable[str], Iterable[str]]) -> None:
        self.networks = (student, teacher)
        self.read = (set(read[0]), set(read[1]))
        self.names: list[list[str]] = [[], []]

    def matrix(self, answers: tuple[Answer, Answer], batches: int) -> dict[str, Any]:
        """Return the names of the layers and the CKA of each pair, as plain data.

        Args:
            answers: Call the student and the teacher.
            batches: How many batches there are.
        """
        kept: tuple[dict[str, list[Tensor]], dict[str, list[Tensor]]] = ({}, {})
        for batch in range(batches):
            for which in (0, 1):
                for name, features in self._features(which, answers[which], batch).items():
                    kept[which].setdefault(name, []).append(features)
        ours, theirs = (_whole(layers, batches) for layers in kept)
        rows = [[_cka(x, y) for y in theirs.values()] for x in ours.values()]
        samples = len(next(iter(ours.values()))) if ours else 0
        return {"student": list(ours), "teacher": list(theirs), "cka": rows, "samples": samples}

    def _features(self, which: int, answer: Answer, batch: int) -> dict[str, Tensor]:
        with Trace(self.networks[which]) as trace:
            output, rows = answer(batch)
            ran = trace.before(output)
        names = self.names[which] = self.names[which] or _chosen(ran, self.read[which])
        values = {seen.name: seen for seen in ran.every}
        found = {}
        for name in names:
            seen = values.get(name)
            if seen is None or version_of(seen.value) != seen.version or len(seen.value) != rows:
                continue  # it ran otherwise this time, or its value was changed in place
            features = _rows(seen.value, seen.layer)
            if features is not None:
                found[name] = features.cpu()
        return found


def _chosen(ran: Ran, read: set[str]) -> list[str]:
    """Return the names of the layers to look at, in the order in which they run."""
    stages = find_stages(ran)
    named = {seen.name for seen in stages.take(min(_STAGES, len(stages)))}
    order = [seen.name for seen in ran.every if seen.name in named | read]
    return order if len(order) <= _LAYERS else _spread(order, _LAYERS)


def _spread(names: Sequence[str], count: int) -> list[str]:
    return [names[round(at * (len(names) - 1) / (count - 1))] for at in range(count)]


def _rows(value: Tensor, layer: nn.Module) -> Tensor | None:
    """Return one row of features for each sample, ``None`` for a layer that is too wide."""
    if value.ndim > 2:
        # channels come first, but the features of tokens last
        tokens = value.ndim == 3 and not any(isinstance(part, nn.Conv1d) for part in layer.modules())
        value = value.mean(1) if tokens else value.flatten(2).mean(2)
    return value.float() if value.ndim == 2 and value.shape[1] <= _WIDEST and torch.is_floating_point(value) else None


def _whole(layers: dict[str, list[Tensor]], batches: int) -> dict[str, Tensor]:
    """Return the features of all batches, of the layers that were seen in each.

    A layer wider than there are samples gets as many columns as samples, with the same products of samples; of these
    alone CKA is made.
    """
    found = {name: torch.cat(rows).double() for name, rows in layers.items() if len(rows) == batches}
    return {
        name: torch.linalg.qr(rows.T, mode="r").R.T if rows.shape[1] > len(rows) else rows
        for name, rows in found.items()
    }


def _cka(x: Tensor, y: Tensor) -> float | None:
    metric = LinearCKA(x.shape[1], y.shape[1], debiased=True, sync_on_compute=False)
    metric.update(x, y)
    value = float(metric.compute())
    return value if math.isfinite(value) else None
