"""Counts of a teacher's answers against the labels, on the device of the answers, and what they say."""

import torch
from torch import Tensor

from lightning_kd.doctor.binomial import surely_above, surely_below
from lightning_kd.doctor.findings import Finding

_MOST_CLASSES = 1024
_SHOWN = 30
"""Number of classes up to which an order is written out."""
_FEW = 8


class ClassCounts:
    """Counts how often a teacher names each class for each label.

    The counts stay on the device, so that nothing waits for it until they are asked for. Rows of even and odd place are
    counted apart: an order of the classes that is read from the ones is tested on the others.

    Args:
        classes: Number of classes.
    """

    def __init__(self, classes: int) -> None:
        self.classes = classes
        self._counts: list[Tensor] = []

    def add(self, logits: Tensor, target: Tensor) -> None:
        """Count one batch.

        Args:
            logits: The teacher's, (B, C).
            target: Class ids (B,); rows with an id that is no class are left out.
        """
        if not self._counts:
            self._counts = [
                torch.zeros(self.classes**2, dtype=torch.long, device=logits.device) for _ in ("even", "odd")
            ]
        named, target = logits.argmax(1), target.long()
        counted = (target >= 0) & (target < self.classes)
        cell = named * self.classes + torch.where(counted, target, 0)
        for i, counts in enumerate(self._counts):
            counts.scatter_add_(0, cell[i::2], counted[i::2].long())

    def findings(self) -> list[Finding]:
        """Return what the counts say."""
        if not self._counts:
            return []
        even, odd = (counts.view(self.classes, self.classes).cpu() for counts in self._counts)
        both = even + odd
        rows, hits = int(both.sum()), int(both.diagonal().sum())
        if (order := self._order(even, odd)) is not None:
            return [self._of_order(order, hits, rows)]
        return [self._of_chance(both, hits, rows)] if surely_below(hits, rows, self.hardly) else []

    @property
    def hardly(self) -> float:
        """The accuracy below which a teacher is hardly better than a guess.

        It is a tenth of the way from guessing to certainty; of many classes, three times a guess, but 3 % at least.
        """
        guess = 1 / self.classes
        return min(guess + 0.1 * (1 - guess), max(3 * guess, 0.03))

    @property
    def know_the_labels(self) -> bool:
        """Whether the answers are surely better than a guess."""
        return surely_above(*self.accuracy(), self.hardly)

    def accuracy(self) -> tuple[int, int]:
        """Return how many rows were named rightly, and of how many."""
        both = sum((counts.view(self.classes, self.classes).cpu() for counts in self._counts), torch.zeros(1, 1))
        return int(both.diagonal().sum()) if self._counts else 0, int(both.sum())

    def _order(self, even: Tensor, odd: Tensor) -> list[int] | None:
        """Return the teacher's class for each label if another order fits far better, tested on the other rows."""
        order = _best_order(even)
        rows, hits = int(odd.sum()), int(odd.diagonal().sum())
        ordered = sum(int(odd[named, label]) for label, named in enumerate(order))
        if not rows or ordered <= hits:
            return None
        halfway = (ordered + hits) / (2 * rows)
        fits = surely_above(ordered, rows, halfway) and surely_below(hits, rows, halfway)
        return order if fits and ordered / rows > 2 * self.hardly and ordered > hits + 0.2 * rows else None

    def _of_order(self, order: list[int], hits: int, rows: int) -> Finding:
        shown = f"={order}" if self.classes <= _SHOWN else ""
        return Finding(
            "order of classes",
            f"The teacher is right on {hits / rows:.1%} of the first {rows:,} training samples, but on far more "
            "if its classes are put in another order.",
            "Give the teacher's class for each of the student's: "
            f"teacher_classes{shown}. Or number the classes of the data as for the teacher.",
        )

    def _of_chance(self, counts: Tensor, hits: int, rows: int) -> Finding:
        said = counts.sum(1)
        always = f" It names class {int(said.argmax())} for all of them." if int((said > 0).sum()) == 1 else ""
        return Finding(
            "teacher near chance",
            f"The teacher is right on {hits / rows:.1%} of the first {rows:,} training samples, hardly better than a "
            f"guess ({1 / self.classes:.2%}).{always}",
            "Its weights may not be loaded: give teacher_weights=FILE, or load them before. Or it is shown other "
            "inputs than it was trained on: teacher_inputs=Renormalize(...) or Resize(...). Or its classes are "
            "numbered otherwise: teacher_classes=[...].",
        )


def counts_for(logits: Tensor | None, target: object) -> ClassCounts | None:
    """Return counts for a batch of classes, ``None`` for what is none: tokens, maps, labels that are no ids."""
    if logits is None or logits.ndim != 2 or not 2 <= logits.shape[1] <= _MOST_CLASSES:
        return None
    ids = isinstance(target, Tensor) and target.ndim == 1 and not target.is_floating_point()
    return ClassCounts(logits.shape[1]) if ids else None


def spread(logits: Tensor) -> Tensor:
    """Return how far logits (B, ...) of different samples differ at most, in units of their own size."""
    rows = logits.detach().float().flatten(1)
    return (rows - rows[:1]).abs().amax() / rows.abs().amax().clamp_min(1e-12)


def finding_of_constant(teacher: float, student: float, rows: int) -> Finding | None:
    """Return what to say of a teacher whose answers do not differ, on samples on which the student's do.

    Args:
        teacher: Largest spread of its answers in a batch.
        student: The same of the student's.
        rows: Number of samples.
    """
    if rows < _FEW or teacher > 1e-6 or student < 1e-3:
        return None
    return Finding(
        "constant teacher",
        f"The teacher gives the same answer to all of the first {rows:,} training samples.",
        "Look whether its weights are loaded, and whether it sees the inputs in the range that it was trained on: "
        "teacher_inputs=Renormalize(...).",
    )


def _best_order(counts: Tensor) -> list[int]:
    """Return the teacher's class for each label, the most frequent pairs first; those never seen keep their number."""
    classes = len(counts)
    order: dict[int, int] = {}
    free = set(range(classes))
    named, label = (counts > 0).nonzero(as_tuple=True)
    for place in counts[named, label].argsort(descending=True, stable=True).tolist():
        one, its = int(named[place]), int(label[place])
        if its not in order and one in free:
            order[its] = one
            free.discard(one)
    for its in range(classes):
        if its not in order and its in free:
            order[its] = its
            free.discard(its)
    return [order[its] if its in order else free.pop() for its in range(classes)]
