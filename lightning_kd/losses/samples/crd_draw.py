"""CRD's draw of rows to compare with: each at most once, as long as there are enough."""

import math

import torch
from torch import Tensor

from lightning_kd.schedules import check_constants, check_whole


def draw_positions(counts: Tensor, size: int, fewest: int, most: int) -> Tensor:
    """Draw positions below each sample's count, uniformly, without replacement where the count allows it.

    RepDistiller draws so: ``numpy.random.choice(rows, size, replace=size > len(rows))``.

    Args:
        counts: Number of rows to choose from, for each sample, shape (B, 1), >= 1.
        size: How many to draw.
        fewest: Lower bound of the counts, known without a look at the device.
        most: Upper bound of the counts.

    Returns:
        Positions of shape (B, size), int64.
    """
    if size > most or not len(counts):
        return with_replacement(counts, size)
    width = min(most, max(2 * size, 64))
    drawn = []
    if most > width:
        drawn.append((counts > width, _first_of_many(counts, size, max(fewest, width), most)))
    if fewest <= width:
        drawn.append(((counts >= size) & (counts <= width), _some_of_few(counts, size, width)))
    if fewest < size:
        drawn.append((counts < size, with_replacement(counts, size)))
    result = drawn[0][1]
    for where, positions in drawn[1:]:
        result = torch.where(where, positions, result)
    return result


def with_replacement(counts: Tensor, size: int) -> Tensor:
    """Draw positions below each sample's count, uniformly and independently."""
    dtype = torch.float32 if counts.device.type == "mps" else torch.float64  # that device has no float64
    return torch.rand((len(counts), size), dtype=dtype, device=counts.device).mul_(counts).long()


def _some_of_few(counts: Tensor, size: int, width: int) -> Tensor:
    """Draw from at most ``width`` positions: those with the smallest of as many random numbers."""
    keys = torch.rand((len(counts), width), device=counts.device)
    keys = keys.masked_fill_(torch.arange(width, device=counts.device) >= counts, 2.0)
    return keys.topk(size, dim=1, largest=False, sorted=False).indices


def _first_of_many(counts: Tensor, size: int, fewest: int, most: int) -> Tensor:
    """Draw from more than twice as many positions: the first different ones of a sequence that is long enough.

    The sequence is longer than its mean need by more than ten deviations.
    """
    length = math.ceil(-fewest * math.log1p(-size / fewest) + 10 * math.sqrt(size) + 10)
    sequence = with_replacement(counts, length)
    order = torch.arange(length, dtype=torch.int32, device=counts.device)
    step = max(1, (2**23 if counts.device.type == "cpu" else 2**26) // most)
    earliest = torch.full((min(step, len(counts)), most), length, dtype=torch.int32, device=counts.device)
    drawn = []
    for i, part in enumerate(sequence.split(step)):
        places = (order - i * length).expand_as(part)  # below those of the parts before, which need no clearing then
        is_first = earliest[: len(part)].scatter_reduce_(1, part, places, "amin").gather(1, part) == places
        rank = is_first.cumsum(dim=1).sub_(1)
        rank = torch.where(is_first, rank, size).clamp_max_(size)  # the last column takes what is not wanted
        drawn.append(part[:, : size + 1].scatter(1, rank, part)[:, :size])
    return torch.cat(drawn)


def class_of_each_row(targets: Tensor | None, num_samples: int) -> Tensor:
    """Return the class id of every row; a row without a class has one of its own, which is negative.

    Raises:
        ValueError: If the data set does not tell one class id for each row.
    """
    if targets is None:
        raise ValueError(
            "CRDLoss: negatives come from other classes, but the data set does not tell its classes; wrap one "
            "that has `targets` or `labels` in lightning_kd.data.Indexed, or choose negatives_from='any'."
        )
    targets = targets.squeeze(1) if targets.shape == (num_samples, 1) else targets
    if targets.shape != (num_samples,) or targets.is_floating_point():
        raise ValueError(
            f"CRDLoss: expected one class id for each of {num_samples} rows, got {targets.dtype} of shape "
            f"{tuple(targets.shape)}; choose negatives_from='any' for targets that are no classes."
        )
    classes = targets.detach().long().cpu()
    alone = -1 - torch.arange(num_samples)
    return torch.where(classes < 0, alone, classes)


def check_options(dim: int, negatives: int, momentum: float, negatives_from: str) -> None:
    """Raise a ``ValueError`` that names the first option of CRD that is out of its range."""
    check_whole("CRDLoss", "dim", dim, 1)
    check_whole("CRDLoss", "negatives", negatives, 1)
    check_constants("CRDLoss", momentum=momentum)
    if not 0.0 <= momentum < 1.0:
        raise ValueError(f"CRDLoss: expected momentum in [0, 1), got {momentum}.")
    if negatives_from not in ("other_classes", "any"):
        raise ValueError(f"CRDLoss: expected negatives_from 'other_classes' or 'any', got {negatives_from!r}.")
