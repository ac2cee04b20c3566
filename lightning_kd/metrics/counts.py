"""Sums over counts: what a comparison adds up over batches, processes and loaders."""

import warnings
from typing import Any, Self

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.regression import PearsonCorrCoef


class Share(Metric):
    """Fraction of the counted positions that are hits, 0..1; NaN without any, or if any could not be read."""

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    same: Tensor
    total: Tensor
    strange: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("same", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("total", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("strange", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, hits: Tensor, counted: Tensor | None = None, strange: Tensor | None = None) -> None:
        """Count one batch.

        Args:
            hits: Which positions are hits.
            counted: Which positions count; all by default.
            strange: Which positions cannot be read, so that the whole value is unknown.
        """
        if counted is None:
            self.same += hits.sum()
            self.total += hits.numel()
        else:
            self.same += (hits & counted).sum()
            self.total += counted.sum()
        if strange is not None:
            self.strange += strange.sum()

    def compute(self) -> Tensor:
        """Return the fraction over everything counted so far."""
        share = self.same / self.total
        return torch.where(self.strange > 0, torch.nan, share)


class Sums(Metric):
    """A metric whose states are sums of 64 bits, which stay exact over long data sets."""

    is_differentiable = False
    full_state_update = False

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Move the sums to a device; to one of 32 bits in such."""
        if torch.device(args[0] if args else kwargs.get("device", "cpu")).type == "mps":
            self.set_dtype(torch.float32)
        return super().to(*args, **kwargs)


class WeightedMean(Sums):
    """Mean of means over an evaluation, each with the weight that it is over, such as its tokens; NaN without any.

    Example:
        >>> average = WeightedMean()
        >>> average.update(torch.tensor(1.0), torch.tensor(3))
        >>> average.update(torch.tensor(5.0), torch.tensor(1))
        >>> average.compute()
        tensor(2., dtype=torch.float64)
    """

    higher_is_better = False
    total: Tensor
    weight: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("total", torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("weight", torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, mean: Tensor, weight: Tensor) -> None:
        """Count one batch.

        Args:
            mean: Mean over what the batch counts.
            weight: How much that is.
        """
        weight = weight.to(self.weight)
        self.total += torch.where(weight > 0, mean.detach().to(self.total) * weight, 0.0)
        self.weight += weight

    def compute(self) -> Tensor:
        """Return the mean over everything counted so far."""
        return self.total / self.weight


class F1(Metric):
    """Harmonic mean of precision and recall over all labels of all samples (micro F1), 0..1.

    It is 1 where no label is given and none is predicted.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    right: Tensor
    named: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("right", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("named", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, predicted: Tensor, given: Tensor, counted: Tensor) -> None:
        """Count one batch of booleans of equal shape."""
        self.right += (predicted & given & counted).sum()
        self.named += (predicted & counted).sum() + (given & counted).sum()

    def compute(self) -> Tensor:
        """Return the score over everything counted so far."""
        return torch.where(self.named > 0, 2 * self.right / self.named, 1.0)


class Correlation(PearsonCorrCoef):
    """Pearson's correlation, the mean over the outputs; NaN where one side has a single value."""

    def compute(self) -> Tensor:
        """Return the mean over the outputs of what was counted so far."""
        with warnings.catch_warnings():  # a NaN says as much, and torchmetrics warns once an output
            warnings.filterwarnings("ignore", "The variance of predictions or target is close to zero")
            value: Tensor = super().compute()
        return value.mean()
