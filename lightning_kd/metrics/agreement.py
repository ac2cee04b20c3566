"""How often two sets of predictions name the same class."""

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric


class Agreement(Metric):
    """Fraction of samples for which two predictions name the same class, 0..1.

    With class ids as the reference this is top-1 accuracy; with a teacher's logits it is the agreement of student
    and teacher. Samples whose reference id is ``ignore_index`` do not count; without any sample the value is NaN.

    Args:
        ignore_index: Reference class id that marks an unlabelled sample.

    Shape:
        - predictions: logits :math:`(B, C, ...)`.
        - reference: class ids :math:`(B, ...)`, or logits or probabilities :math:`(B, C, ...)`.

    Example:
        >>> metric = Agreement()
        >>> metric.update(torch.tensor([[2.0, 1.0], [0.0, 3.0], [5.0, 0.0]]), torch.tensor([0, 0, -100]))
        >>> metric.compute()
        tensor(0.5000)
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    same: Tensor
    total: Tensor

    def __init__(self, ignore_index: int = -100, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.ignore_index = ignore_index
        self.add_state("same", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("total", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, predictions: Tensor, reference: Tensor) -> None:
        """Count one batch.

        Args:
            predictions: Logits.
            reference: Class ids, or logits of another model.

        Raises:
            ValueError: If the two do not belong to the same samples.
        """
        classes = predictions.argmax(dim=1)
        other = reference.argmax(dim=1) if reference.is_floating_point() else reference
        if classes.shape != other.shape:
            raise ValueError(
                f"Agreement: predictions {tuple(predictions.shape)} and reference {tuple(reference.shape)} "
                "do not belong to the same samples."
            )
        counted = other != self.ignore_index
        self.same += ((classes == other) & counted).sum()
        self.total += counted.sum()

    def compute(self) -> Tensor:
        """Return the fraction over everything counted so far."""
        return self.same / self.total
