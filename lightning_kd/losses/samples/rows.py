"""Are the rows that samples carry those of the data set? Looked at without letting a device wait in every step."""

import torch
from torch import Tensor


class RowWatch:
    """Collects on the device what is wrong with the rows of the batches; reading it makes the device wait."""

    every = 50

    def __init__(self) -> None:
        self.steps = 0
        self.outside: Tensor | None = None
        self.twice: Tensor | None = None
        self.other_label: Tensor | None = None

    def note_labels(self, classes: Tensor | None, index: Tensor, target: Tensor) -> None:
        """Note a sample whose label is not the class of its row; where classes are no ids, nothing is compared."""
        target = target.squeeze(1) if target.shape == (len(index), 1) else target
        comparable = target.ndim == 1 and target.shape == index.shape and not target.is_floating_point()
        if classes is None or not comparable or not len(index) or torch.compiler.is_compiling():
            return
        index, target = index.to(classes.device, torch.long), target.to(classes.device, torch.long)
        expected = classes[index.clamp(0, len(classes) - 1)]
        # a sample without a label, as in unlabelled data, says nothing
        first = ((expected != target) & (target >= 0)).byte().argmax()
        found = torch.stack((index[first], target[first], expected[first]))
        if self.other_label is not None:
            earlier = self.other_label.to(found.device)
            found = torch.where((earlier[1] >= 0) & (earlier[1] != earlier[2]), earlier, found)
        self.other_label = found

    def must_look(self, outside: Tensor, twice: Tensor, *, free: bool) -> bool:
        """Note what is wrong in a step, and return whether to look: always if that is free, else every 50 steps."""
        self.outside = outside if self.outside is None else self.outside | outside.to(self.outside.device)
        self.twice = twice if self.twice is None else self.twice | twice.to(self.twice.device)
        self.steps += 1
        return free or self.steps % self.every == 1

    def look(self, num_samples: int) -> None:
        """Raise a ``ValueError`` if something is wrong."""
        outside, twice, other = self.outside, self.twice, self.other_label
        self.outside = self.twice = self.other_label = None
        if outside is not None and outside:
            raise ValueError(
                f"CRDLoss: expected row indices from 0 to {num_samples - 1}, and a batch had others; they must count "
                "the rows of the training set itself: wrap it last, Indexed(Subset(...))."
            )
        if twice is not None and twice:
            raise ValueError(
                "CRDLoss: two samples of a batch have the same row index, so what its row should remember is not "
                "defined; use a sampler without replacement."
            )
        row, label, expected = (-1, -1, -1) if other is None else other.tolist()
        if label >= 0 and label != expected:
            raise ValueError(
                f"CRDLoss: the sample of row {row} has the label {label}, but the data set's `targets` say "
                f"{expected if expected >= 0 else 'that it has none'}, so negatives would be drawn from the wrong "
                "classes. Either the rows are not those of the training set: wrap it last, Indexed(Subset(...)). Or "
                "the samples carry other labels than `targets`: give those labels, Indexed(dataset, targets=labels), "
                "or choose negatives_from='any'."
            )
