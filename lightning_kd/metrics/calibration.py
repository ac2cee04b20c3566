"""Whether a network is right as often as it says."""

from typing import Any, cast

import torch
from torch import Tensor

from lightning_kd.metrics.counts import Sums
from lightning_kd.metrics.rows import class_rows


class CalibrationError(Sums):
    r"""Expected calibration error (ECE) of the class that a network names, 0..1.

    .. math::
        \sum_{m=1}^{M} \frac{|B_m|}{N} \left| \mathrm{acc}(B_m) - \mathrm{conf}(B_m) \right|

    The confidence of a sample is its highest probability. The bins :math:`B_m` are equally wide, each without its lower
    end and with its upper one, :math:`(\frac{m-1}{M}, \frac{m}{M}]`, as in the paper; the norm is l1. The definition is
    that of torchmetrics' ``MulticlassCalibrationError(norm="l1")``, except for a confidence exactly at the end of a
    bin. That one keeps every sample; this one keeps three sums for each bin, which also draw the reliability diagram.

    By ``metrics=`` it is computed for student and teacher.

    Args:
        bins: How many bins, > 0. The paper uses 15.
        ignore_index: Class id that marks a sample without a label.

    Shape:
        - scores: unnormalised class scores :math:`(B, C, ...)`; target: class ids :math:`(B, ...)`.

    Raises:
        ValueError: If there is no bin.

    Example:
        >>> metric = CalibrationError()
        >>> metric.update(torch.tensor([[0.9, 0.1], [0.3, 0.7]]).log(), torch.tensor([0, 0]))
        >>> metric.compute()  # 1/2 |1 - 0.9| + 1/2 |0 - 0.7|
        tensor(0.4000, dtype=torch.float64)

    Reference:
        Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, arXiv:1706.04599.
    """

    higher_is_better = False
    counts: Tensor
    confidences: Tensor
    right: Tensor

    def __init__(self, bins: int = 15, ignore_index: int = -100, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if bins < 1:
            raise ValueError(f"CalibrationError: bins must be > 0, got {bins}.")
        self.bins = bins
        self.ignore_index = ignore_index
        self.add_state("counts", torch.zeros(bins, dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("confidences", torch.zeros(bins, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("right", torch.zeros(bins, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, scores: Tensor, target: Tensor) -> None:
        """Count one batch.

        Args:
            scores: Unnormalised class scores.
            target: Class ids.

        Raises:
            ValueError: If there is not one id for each position, or an id names no class.
        """
        (rows,), ids = class_rows(type(self).__name__, (scores,), target, self.ignore_index, labelled_only=True)
        confidence, named = rows.softmax(1).max(1)
        place = (confidence * self.bins).ceil().long().clamp(1, self.bins) - 1
        self.counts.index_add_(0, place, torch.ones_like(place))
        self.confidences.index_add_(0, place, confidence.to(self.confidences.dtype))
        self.right.index_add_(0, place, (named == cast(Tensor, ids)).long())

    def compute(self) -> Tensor:
        """Return the error over everything counted so far, NaN without any sample."""
        return (self.right - self.confidences).abs().sum() / self.counts.sum()

    def reliability(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return for each bin how many samples it has, their mean confidence, and the share that is right.

        The last two are NaN for a bin without samples. Of several processes, these are the samples of this one.
        """
        return self.counts, self.confidences / self.counts, self.right / self.counts
