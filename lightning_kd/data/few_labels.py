"""Data of which few samples keep their label."""

import torch
from torch import Tensor

from lightning_kd.data.indexed import NO_TARGET


def few_labels(target: Tensor, labelled_per_class: int, seed: int = 0) -> Tensor:
    """Keep the labels of some samples of each class, and give all others the target -100.

    ``CrossEntropyLoss`` leaves out rows with that target; distillation reads them.

    Args:
        target: Class ids from 0, of shape (rows,).
        labelled_per_class: Samples of each class that keep their label, >= 0.
        seed: Chooses which do.

    Returns:
        The class ids, of shape (rows,).

    Raises:
        ValueError: If a class has fewer samples than that.

    Example:
        >>> few_labels(torch.tensor([0, 1, 0, 1, 1]), labelled_per_class=1)
        tensor([   0,    1, -100, -100, -100])
    """
    smallest = int(target.bincount().min())
    if not 0 <= labelled_per_class <= smallest:
        raise ValueError(
            f"few_labels: expected 0 <= labelled_per_class <= {smallest}, the samples of the rarest class, "
            f"got {labelled_per_class}."
        )
    generator = torch.Generator().manual_seed(seed)
    shown = torch.full_like(target, NO_TARGET)
    for label in range(int(target.max()) + 1):
        rows = (target == label).nonzero().squeeze(1)
        kept = rows[torch.randperm(len(rows), generator=generator)[:labelled_per_class]]
        shown[kept] = label
    return shown
