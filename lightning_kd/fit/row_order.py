"""Under the callback the user's own step may reorder the batch, of which the losses read target and row."""

import torch
from torch import Tensor

from lightning_kd.capture.batch import Batch
from lightning_kd.capture.call import Call
from lightning_kd.capture.private import tree_leaves


class RowOrder:
    """Finds out whether a step gives the student the samples in the order of the batch.

    A step that hands the batch's own tensor on costs nothing. Of one that makes another tensor, the first steps and
    every hundredth are looked at: rows that are those of the batch, but in other places, are refused. Of inputs that
    were computed anew (normalised, augmented, mixed) nothing can be told.
    """

    first, every = 5, 100

    def __init__(self) -> None:
        self._steps = 0

    def check(self, read: Batch, call: Call) -> None:
        """Look at a step.

        Args:
            read: The batch taken apart.
            call: The student's recorded call.

        Raises:
            ValueError: If the student sees the samples in another order.
        """
        given = _samples((read.args, read.kwargs))
        used = _samples((call.args, call.kwargs))
        if not given or not used or any(_same_memory(one, other) for one in used for other in given):
            return
        self._steps += 1
        if self._steps > self.first and self._steps % self.every:
            return
        if any(_moved(one, other) for one in used for other in given):
            raise ValueError(
                "The training step gives the student the samples of the batch in another order, so losses that read "
                "the target or the row would compare them with those of other samples. Shuffle in the DataLoader, or "
                "override unpack_batch of the callback or train with a DistillationModule whose unpack_batch reorders "
                "inputs, target and index alike."
            )


def _samples(inputs: object) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor) and leaf.ndim > 0 and len(leaf) > 1]


def _same_memory(one: Tensor, other: Tensor) -> bool:
    return one is other or (one.shape == other.shape and one.data_ptr() == other.data_ptr())


@torch.no_grad()
def _moved(used: Tensor, given: Tensor) -> bool:
    """Whether rows of one tensor are rows of another in other places."""
    if used.shape != given.shape or used.dtype != given.dtype or used.device != given.device or used.is_complex():
        return False
    flat_used, flat_given = used.reshape(len(used), -1), given.reshape(len(given), -1)
    at_home = (flat_used == flat_given).all(dim=1)
    if at_home.all():
        return False
    # sums of the same numbers in the same order are the same
    factors = torch.linspace(1.0, 2.0, flat_used.shape[1], device=used.device, dtype=torch.float64).sin()
    marks_used, marks_given = ((flat.double() * factors).sum(dim=1) for flat in (flat_used, flat_given))
    elsewhere = torch.isin(marks_used, marks_given) & ~at_home
    return bool(elsewhere.any())
