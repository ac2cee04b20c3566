"""Student against teacher on a labelled or unlabelled data set."""

import torch
from torch import Tensor

from lightning_kd.metrics.agreement import Agreement


class Comparison:
    """Accuracy of the student and of the teacher, and how often the two agree, over one evaluation.

    Outputs that are not class scores (fewer than two columns) are not counted.

    Example:
        >>> comparison = Comparison()
        >>> student, teacher = torch.tensor([[2.0, 1.0], [2.0, 1.0]]), torch.tensor([[3.0, 0.0], [0.0, 3.0]])
        >>> comparison.update(student, teacher, torch.tensor([0, 1]))
        >>> comparison.compute()
        {'accuracy': 0.5, 'teacher_accuracy': 1.0, 'agreement': 0.5}
    """

    def __init__(self) -> None:
        self._metrics = {"accuracy": Agreement(), "teacher_accuracy": Agreement(), "agreement": Agreement()}

    def update(self, student: Tensor | None, teacher: Tensor | None, target: Tensor | None) -> None:
        """Count one batch; whatever is ``None`` is left out."""
        pairs = {"accuracy": (student, target), "teacher_accuracy": (teacher, target), "agreement": (student, teacher)}
        for name, (scores, reference) in pairs.items():
            if scores is not None and reference is not None and _comparable(scores, reference):
                self._metrics[name].to(scores.device).update(scores, reference)

    def updated(self) -> dict[str, Agreement]:
        """Return the metrics that have data, by name."""
        return {name: metric for name, metric in self._metrics.items() if metric.update_called}

    def compute(self) -> dict[str, float]:
        """Return the values that have data, over all processes."""
        return {name: float(metric.compute()) for name, metric in self.updated().items()}


def _comparable(scores: Tensor, reference: Tensor) -> bool:
    if scores.ndim < 2 or scores.shape[1] < 2:
        return False
    if reference.dtype == torch.bool or reference.is_complex():
        return False
    return scores.shape == reference.shape if reference.is_floating_point() else True
