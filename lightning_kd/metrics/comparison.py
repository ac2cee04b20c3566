"""Student against teacher on a labelled or unlabelled data set."""

import torch
from torch import Tensor

from lightning_kd.metrics.agreement import Agreement


class Comparison:
    """Accuracy of the student and of the teacher, and how often the two agree, over one evaluation.

    Only class scores are compared: outputs ``(B, C, ...)`` of at least two classes, or ``(B, N, C)`` of tokens where
    the target says that the classes are last. Where outputs and target do not fit, nothing is counted, and
    :attr:`left_out` says why.

    Args:
        ignore_index: Class id of samples without a label, which do not count.

    Example:
        >>> comparison = Comparison()
        >>> student, teacher = torch.tensor([[2.0, 1.0], [2.0, 1.0]]), torch.tensor([[3.0, 0.0], [0.0, 3.0]])
        >>> comparison.update(student, teacher, torch.tensor([0, 1]))
        >>> comparison.compute()
        {'accuracy': 0.5, 'teacher_accuracy': 1.0, 'agreement': 0.5}
    """

    def __init__(self, ignore_index: int = -100) -> None:
        names = ("accuracy", "teacher_accuracy", "agreement")
        self._metrics = {name: Agreement(ignore_index) for name in names}
        self.left_out: dict[str, str] = {}
        """Why a metric was not counted in a batch, by its name."""

    def update(self, student: Tensor | None, teacher: Tensor | None, target: Tensor | None) -> None:
        """Count one batch; whatever is ``None`` is left out."""
        pairs = {"accuracy": (student, target), "teacher_accuracy": (teacher, target), "agreement": (student, teacher)}
        for name, (scores, reference) in pairs.items():
            if scores is None or reference is None:
                continue
            # where the target shows another task, its outputs have no classes in which student and teacher could agree
            reason = None if target is None else _why_no_classes(scores, target)
            reason = reason or _why_not(scores, reference)
            axis = None if reason else _class_axis(scores, target)
            if axis is None:
                self.left_out[name] = reason or f"outputs {tuple(scores.shape)} do not tell their class axis"
                continue
            scores, reference = (x.movedim(axis, 1) if x.is_floating_point() else x for x in (scores, reference))
            self._metrics[name].to(scores.device).update(scores, reference)

    def updated(self) -> dict[str, Agreement]:
        """Return the metrics that have data, by name."""
        return {name: metric for name, metric in self._metrics.items() if metric.update_called}

    def compute(self) -> dict[str, float]:
        """Return the values that have data, over all processes."""
        return {name: float(metric.compute()) for name, metric in self.updated().items()}


def _why_not(scores: Tensor, reference: Tensor) -> str | None:
    """Return why a reference does not name a class for each sample of some scores, ``None`` if it does."""
    got = f"outputs {tuple(scores.shape)} and target {tuple(reference.shape)} of {reference.dtype}"
    if scores.ndim < 2 or (max(scores.shape[1:]) if scores.ndim == 3 else scores.shape[1]) < 2:
        return f"outputs {tuple(scores.shape)} are no scores of several classes"
    if reference.is_floating_point() and scores.shape != reference.shape:
        return f"{got} are not of the same classes and samples"
    return None


def _why_no_classes(scores: Tensor, target: Tensor) -> str | None:
    """Return why a target holds neither class ids nor probabilities of classes, ``None`` if it does."""
    got = f"outputs {tuple(scores.shape)} and target {tuple(target.shape)} of {target.dtype}"
    if target.dtype == torch.bool or target.is_complex():
        return f"{got} are no classes"
    if not target.is_floating_point():
        fits = scores.ndim >= 2 and target.shape in (scores.shape[:1] + scores.shape[2:], scores.shape[:-1])
        return None if fits else f"{got} do not belong to the same samples"
    if target.ndim < 2 or target.shape != scores.shape:
        return f"{got} are no probabilities of the same classes"
    sums = target.sum(dim=1)
    probable = (target >= 0).all() and (sums - 1).abs().max() < 1e-2 if target.numel() else True
    return None if probable else f"{got} are no probabilities: several labels at once, or a regression"


def _class_axis(scores: Tensor, target: Tensor | None) -> int | None:
    """Return the axis of the classes: the last of tokens ``(B, N, C)``, else axis 1; ``None`` if it cannot be known."""
    if scores.ndim != 3:
        return 1
    if target is None or target.is_floating_point() or target.ndim != 2:
        return None
    first, last = (target.shape == shape for shape in (scores.shape[:1] + scores.shape[2:], scores.shape[:2]))
    return None if first == last else 1 if first else 2
