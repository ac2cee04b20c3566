"""How much of the student's gradient each part of the loss gives."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lightning_kd.doctor.findings import Finding
from lightning_kd.engine.step import Terms
from lightning_kd.fit.part_gradients import products_of_gradients
from lightning_kd.fit.run import DistillationRun

_TINY = 1e-3
"""The share of the gradient below which a part teaches next to nothing."""


@dataclass
class Part:
    """A part of the loss, over several batches.

    Args:
        name: Its name.
        weight: Its weight at the start.
        value: Its mean, without the weight.
        size: Mean length of its gradient on the student's parameters, with the weight.
        cosine: Mean cosine of that with the gradient of the task, NaN without one.
    """

    name: str
    weight: float
    value: float
    size: float
    cosine: float


class PartsWatch:
    """Differentiates each part of the loss by itself.

    Args:
        run: The run.
    """

    def __init__(self, run: DistillationRun) -> None:
        self.run = run
        self._seen: dict[str, list[tuple[float, float, float]]] = {}

    def look(self, terms: Terms, step: int) -> None:
        """Look at a step, whose graph stays; a first stage is left out.

        Args:
            terms: Its terms.
            step: Its number, which says nothing here.
        """
        if self.run.clock.goal.in_stage:
            return
        weights = self.run.objective.weights()
        found = products_of_gradients(self.run, terms) or {"parts": [], "products": []}
        names = found["parts"]
        rows = [dict(zip(names, row, strict=True)) for row in found["products"]]
        products = dict(zip(names, rows, strict=True))
        for name in [name for name in terms.parts if name in weights]:
            row = products.get(name, {})
            size = math.sqrt(row.get(name, 0.0))
            both = size * math.sqrt(products["task"]["task"]) if "task" in row and name != "task" else 0.0
            cosine = row["task"] / both if both else math.nan
            self._seen.setdefault(name, []).append((terms.parts[name].item(), size, cosine))

    def parts(self) -> list[Part]:
        """Return what the steps show of each part."""
        weights = self.run.objective.weights()
        return [
            Part(name, weights[name], *(sum(column) / len(column) for column in zip(*seen, strict=True)))
            for name, seen in self._seen.items()
        ]


def shares(parts: Sequence[Part]) -> dict[str, float]:
    """Return each part's share of the gradients' lengths, 0..1."""
    whole = sum(part.size for part in parts)
    return {part.name: part.size / whole if whole else 0.0 for part in parts}


def findings_of(parts: Sequence[Part]) -> list[Finding]:
    """Return what to say of parts that teach nothing, or drown the others.

    Args:
        parts: The parts.
    """
    found = []
    share = shares(parts)
    largest = max(parts, key=lambda part: part.size, default=None)
    for part in parts:
        if not part.weight or largest is None or not largest.size:
            continue
        if not part.size:
            found.append(
                Finding(
                    f"no gradient of {part.name}",
                    f"No gradient of part {part.name!r} reaches the student.",
                    "Look whether the layers that it reads are frozen, or already equal to the teacher's.",
                )
            )
        elif share[part.name] < _TINY:
            found.append(
                Finding(
                    f"share of {part.name}",
                    f"Part {part.name!r} has {100 * share[part.name]:.2g} % of the student's gradient, and "
                    f"{largest.name!r} has {share[largest.name]:.1%}.",
                    f"With {_weight_option(part.name)}={part.weight * largest.size / part.size:.2g} both have as much; "
                    f"or lower {_weight_option(largest.name)} of {largest.weight:g}.",
                    is_sure=False,
                )
            )
    return found


def _weight_option(name: str) -> str:
    return "task_weight" if name == "task" else f"the weight of {name!r}"
