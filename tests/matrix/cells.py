"""What the matrix is made of: every loss with every way to train it."""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import astuple, dataclass, fields, replace

from lightning_kd.losses.strategies import DistillationStrategyType
from tests import support

MODES = ("1 process", "DDP", "DDP, find unused", "FSDP2")
PRECISIONS = ("32-true", "bf16-mixed", "bf16-true")
COMPILED = ("eager", "aot_eager")
ACCUMULATE = (1, 3)
CLIP = ("norm", "value")
FAMILIES = {type(member.create()).__name__: member.name for member in DistillationStrategyType}


@dataclass(frozen=True)
class Cell:
    """One fit of two optimizer steps on the same 16 or, accumulating over 3 batches, 48 samples."""

    loss: str
    gather: bool = True
    mode: str = MODES[0]
    precision: str = PRECISIONS[0]
    compiled: str = COMPILED[0]
    accumulate: int = 1
    clip: str = CLIP[0]
    whole: bool = False
    """The batches that are accumulated are one."""

    def __str__(self) -> str:
        named = zip(fields(self), astuple(self), strict=True)
        return " | ".join(f"{field.name} {value}" if isinstance(value, bool | int) else value for field, value in named)

    @property
    def processes(self) -> int:
        return 1 if self.mode == MODES[0] else 2

    @property
    def references(self) -> dict[str, "Cell"]:
        """The fits that this one is compared with, by what it shares with them."""
        found = {
            "eager": replace(self, compiled="eager"),
            "one process": replace(self, compiled="eager", mode=MODES[0]),
        }
        if self.precision != "32-true":
            found["float32"] = replace(self, compiled="eager", precision="32-true")
        if self.accumulate > 1:
            found["one large batch"] = replace(self, compiled="eager", mode=MODES[0], whole=True)
        return {name: cell for name, cell in found.items() if cell != self}


def variants() -> list[tuple[str, bool]]:
    """Every loss, the families' first; those that compare samples with and without those of other processes."""
    others = [name for name in support.exported_losses() if name not in FAMILIES]
    return [
        (name, gather)
        for name in (*FAMILIES, *others)
        for gather in ((True, False) if "gather" in support.options_of(name) else (True,))
    ]


def product() -> Iterator[Cell]:
    """Every cell; losses that are no family's first are not compiled."""
    for (loss, gather), *ways in itertools.product(variants(), MODES, PRECISIONS, COMPILED, ACCUMULATE, CLIP):
        cell = Cell(loss, gather, *ways)
        if loss in FAMILIES or cell.compiled == "eager":
            yield cell
    for loss in FAMILIES:
        yield Cell(loss, compiled="inductor")
        yield Cell(loss, mode="DDP", compiled="inductor")


def sample(cells: Iterable[Cell], together: int = 2) -> list[Cell]:
    """Choose cells so that each pair of values that occurs in one of them is in a chosen one: the most new first.

    Args:
        cells: Those to choose from.
        together: How many values are to be met together: 2 for pairs.
    """
    left = {cell: _combinations(cell, together) for cell in cells}
    chosen = []
    while left:
        best = max(left, key=lambda cell: len(left[cell]))
        covered = left.pop(best)
        if not covered:
            break
        chosen.append(best)
        left = {cell: rest for cell, combined in left.items() if (rest := combined - covered)}
    return chosen


def with_references(cells: Iterable[Cell]) -> list[Cell]:
    """Return the cells and those that they are compared with."""
    return list(dict.fromkeys(one for cell in cells for one in (*cell.references.values(), cell)))


def _combinations(cell: Cell, together: int) -> frozenset[tuple[tuple[str, object], ...]]:
    named = [(field.name, value) for field, value in zip(fields(cell), astuple(cell), strict=True)]
    return frozenset(itertools.combinations(named, together))
