"""What a loss of somebody's own is a mean over, found by calls with two samples, and with each alone."""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lightning_kd.capture.networks import isolated_random_state
from lightning_kd.capture.no_trace import leaving_no_trace
from lightning_kd.capture.private import tree_map_only
from lightning_kd.distributed.gather import is_distributed
from lightning_kd.metrics.task import IGNORE_INDEX

Mean = Literal["labels", "next labels", "rows"]
"""All labels; all but those of the first position, which a model that predicts the next token leaves out; samples."""

_NAMES: tuple[Mean, ...] = ("labels", "next labels", "rows")
_FITS, _APART = 0.02, 0.1
"""How far a loss may be from a mean, and must be from the other kind, relative to how far the means could lie apart."""


@runtime_checkable
class CountsLabels(Protocol):
    """Knows what a task's loss is a mean over."""

    def labels(self, target: Any) -> Tensor | None:
        """Return how many labels it is over, ``None`` if it is over rows."""

    def count(self, target: Any, rows: int) -> int:
        """Return how many labels it is over, or else the rows."""


class Over:
    """What a task's loss of the user's own is a mean over.

    Args:
        mean: Which it is.
        ignored: What stands in the target for no label.
    """

    def __init__(self, mean: Mean, ignored: int) -> None:
        self.mean, self.ignored = mean, ignored

    def labels(self, target: Any) -> Tensor | None:
        """Return how many labels it is over, ``None`` if it is over rows, or the target holds no ids."""
        if self.mean == "rows" or not isinstance(target, Tensor) or target.is_floating_point() or not target.ndim:
            return None
        counted = target[:, 1:] if self.mean == "next labels" and target.ndim > 1 else target
        return torch.count_nonzero(counted != self.ignored)

    def count(self, target: Any, rows: int) -> int:
        """Return how many labels it is over, or else the rows."""
        labels = self.labels(target)
        return rows if labels is None else int(labels)


def is_of_positions(target: Any) -> bool:
    """Whether labels are ids of several positions of each row."""
    return isinstance(target, Tensor) and target.ndim in (2, 3) and not target.is_floating_point()


def _ignored_by(task_loss: nn.Module, logits: Tensor, target: Tensor) -> int:
    """Return what stands in the target of a task's loss for no label: as it says, or the one id that is no class."""
    told = getattr(task_loss, "ignore_index", None)
    if isinstance(told, int):
        return told
    first = logits.ndim == target.ndim + 1 and logits.shape[2:] == target.shape[1:]
    classes = logits.shape[1 if first else -1]
    strange = target[(target < 0) | (target >= classes)].unique()
    return int(strange) if len(strange) == 1 else IGNORE_INDEX


class Found(NamedTuple):
    """What was found of a loss: what it is a mean over, if that is known, and what stands for no label."""

    mean: Mean | None = None
    ignored: int = IGNORE_INDEX


def mean_of_module(task_loss: nn.Module, logits: Tensor, target: Tensor) -> Found:
    """Find what a module of the user's own is a mean over.

    Args:
        task_loss: The task's loss on (logits, target); torch's own say it themselves.
        logits: The student's logits on some samples.
        target: Their target, ids of positions.
    """
    ignored = _ignored_by(task_loss, logits, target)
    if not target.is_cpu and not (target == ignored).any():  # an accelerator does not outlive an id out of range
        return Found()

    def loss_of(given: Mapping[str, Any]) -> Tensor | None:
        try:
            value = task_loss(given["logits"], given["target"])
        except Exception:  # it knows no such target, so it is over no labels that are left out
            return None
        return value.detach().double() if isinstance(value, Tensor) and value.numel() == 1 else None

    whole = leaving_no_trace(task_loss) if isinstance(task_loss, nn.Module) else nullcontext()
    with whole, isolated_random_state(), torch.no_grad():
        return Found(find_mean(loss_of, {"logits": logits.detach(), "target": target}, "target", ignored), ignored)


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
    if not len(target) or int(counts.max()) < 1:
        return None
    if int(counts.max()) == 1:
        return _of_single_labels(loss_of, kwargs, labels, ignored)
    many, *others = counts.argsort(descending=True)[:2].tolist()
    few = next((row for row in others if counts[row] > 0), many)  # fewer labels of one sample serve as well
    pair = _rows(kwargs, len(target), [few, many])
    marked = target[[few, many]].clone()
    places = (marked[0] != ignored).nonzero().flatten()
    first = int(places[0] == 0 and len(places) > 1)  # which a model that predicts the next token leaves out
    kept = min(first + max(1, len(places) // 3), max(1, len(places) - 1))
    marked[0, places[kept:]] = ignored
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


def _of_single_labels(
    loss_of: Callable[[Mapping[str, Any]], Tensor | None], kwargs: Mapping[str, Any], labels: str, ignored: int
) -> Mean | None:
    """Find the same where each sample has one label: a second sample without any changes a mean over samples alone."""
    target = kwargs[labels]
    row = int((target.flatten(1) != ignored).any(1).int().argmax())
    twice = _rows(kwargs, len(target), [row, row])
    pair = {**twice, labels: torch.stack([target[row], torch.full_like(target[row], ignored)])}
    same, both, alone = loss_of(twice), loss_of(pair), loss_of(_rows(pair, 2, [0]))
    if same is None or both is None or alone is None or not alone.isfinite() or float(alone) == 0.0:
        return None
    if abs(float(same) / float(alone) - 1.0) > _FITS:  # a sum
        return None
    share = float(both) / float(alone)
    return "labels" if abs(share - 1.0) < _FITS else "rows" if abs(share - 0.5) < _FITS else None


def agreed(found: Found, device: torch.device) -> Found:
    """Return what the first process has found that has found something, the same in every process."""
    if not is_distributed():
        return found
    number = len(_NAMES) if found.mean is None else _NAMES.index(found.mean)
    own = torch.tensor([number, found.ignored], device=device)
    every = [torch.zeros_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(every, own)
    known = (one.tolist() for one in every if int(one[0]) < len(_NAMES))
    return next((Found(_NAMES[which], ignored) for which, ignored in known), Found())


def _rows(kwargs: Mapping[str, Any], size: int, rows: list[int]) -> dict[str, Any]:
    """Return some samples of the inputs of a call."""

    def pick(value: Tensor) -> Tensor:
        return value[rows] if value.ndim and len(value) == size else value

    return {name: tree_map_only(Tensor, pick, value) for name, value in kwargs.items()}
