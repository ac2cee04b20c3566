"""What the loss that a student computes itself is a mean over, found by calls with two samples, and with each alone."""

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

from lightning_kd.capture.private import tree_map_only
from lightning_kd.distributed.gather import is_distributed

Mean = Literal["labels", "next labels", "rows"]
"""All labels; all but those of the first position, which a model that predicts the next token leaves out; samples."""

_NAMES: tuple[Mean, ...] = ("labels", "next labels", "rows")
_FITS, _APART = 0.02, 0.1
"""How far a loss may be from a mean, and must be from the other kind, relative to how far the means could lie apart."""


def find_mean(
    loss_of: Callable[[Mapping[str, Any]], Tensor | None], kwargs: Mapping[str, Any], labels: str, ignored: int
) -> Mean | None:
    r"""Find what a loss is a mean over.

    Two samples, or one twice, get unequal numbers of labels :math:`n_1, n_2`: most of the labels of one are marked as
    none. If the losses of each alone are :math:`l_1, l_2`, a mean over the labels of both is
    :math:`(n_1 l_1 + n_2 l_2) / (n_1 + n_2)`, and a mean over samples is :math:`(l_1 + l_2) / 2`.

    Args:
        loss_of: Returns the loss of a call with such named inputs, the same at every call.
        kwargs: The named inputs of a call.
        labels: Which of them are the labels (B, T), or (B, H, W).
        ignored: What stands in the labels for none.

    Returns:
        What it is, ``None`` if it is none of these, or the samples at hand do not tell.

    Example:
        >>> import torch.nn.functional as F
        >>> table = torch.arange(12.0).view(3, 4).sin()
        >>> def mean_over_tokens(given):
        ...     return F.cross_entropy(table[given["x"]].flatten(0, 1), given["y"].flatten())
        >>> x = torch.tensor([[0, 1, 2, 0], [2, 2, 1, 0]])
        >>> find_mean(mean_over_tokens, {"x": x, "y": x + 1}, "y", -100)
        'labels'
    """
    target = kwargs[labels].flatten(1)
    counts = (target != ignored).sum(1)
    if not len(target) or int(counts.max()) < 3:
        return None
    many, *others = counts.argsort(descending=True)[:2].tolist()
    few = next((row for row in others if counts[row] > 0), many)  # fewer labels of one sample serve as well
    pair = _rows(kwargs, len(target), [few, many])
    marked = target[[few, many]].clone()
    places = (marked[0] != ignored).nonzero().flatten()
    first = int(places[0] == 0 and len(places) > 1)  # which a model that predicts the next token leaves out
    marked[0, places[first + max(1, len(places) // 3) :]] = ignored
    pair[labels] = marked.view(2, *kwargs[labels].shape[1:])
    both, *single = (loss_of(_rows(pair, 2, rows)) for rows in ([0, 1], [0], [1]))
    if both is None or any(one is None or not one.isfinite() for one in single):
        return None
    one, other = (float(value) for value in single if value is not None)
    weights = [(marked != ignored).sum(1).tolist(), (marked[:, 1:] != ignored).sum(1).tolist(), [1, 1]]
    means = [(n * one + m * other) / (n + m) if n + m else float("nan") for n, m in weights]
    reach = abs(one - other)
    off = [abs(float(both) - mean) / max(reach, 1e-12) for mean in means]
    best = min(range(3), key=off.__getitem__)
    kinds = (off[2], min(off[:2]))
    return _NAMES[best] if off[best] < _FITS and max(kinds) > _APART else None


def agreed(mean: Mean | None, device: torch.device) -> Mean | None:
    """Return what the first process has found that has found something, the same in every process."""
    if not is_distributed():
        return mean
    number = torch.tensor(len(_NAMES) if mean is None else _NAMES.index(mean), device=device)
    found = [torch.zeros_like(number) for _ in range(dist.get_world_size())]
    dist.all_gather(found, number)
    return next((_NAMES[int(one)] for one in found if int(one) < len(_NAMES)), None)


def _rows(kwargs: Mapping[str, Any], size: int, rows: list[int]) -> dict[str, Any]:
    """Return some samples of the inputs of a call."""

    def pick(value: Tensor) -> Tensor:
        return value[rows] if value.ndim and len(value) == size else value

    return {name: tree_map_only(Tensor, pick, value) for name, value in kwargs.items()}
