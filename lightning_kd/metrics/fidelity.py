"""Student against teacher on whole class scores: every number of fidelity at once."""

from collections.abc import Callable

from torch import Tensor
from torchmetrics import Metric

from lightning_kd.metrics.agreement import Agreement
from lightning_kd.metrics.agreement_on_mistakes import AgreementOnMistakes
from lightning_kd.metrics.calibration import CalibrationError
from lightning_kd.metrics.confidence import ConfidenceCorrelation
from lightning_kd.metrics.fidelity_kl import FidelityKL
from lightning_kd.metrics.negative_flips import NegativeFlips


def compare_outputs(student_logits: Tensor, teacher_logits: Tensor, target: Tensor | None) -> dict[str, float]:
    """Compare the class scores of a student and its teacher on the same samples.

    What has nothing to count is NaN, such as the agreement on mistakes where the teacher makes none.

    Args:
        student_logits: The student's class scores (N, C).
        teacher_logits: The teacher's.
        target: Class ids (N,), -100 for a sample without a label; ``None`` without labels, which leaves out what needs
            them.

    Returns:
        Numbers by name: ``accuracy``, ``teacher_accuracy``, ``agreement``, ``agreement_on_mistakes``, ``fidelity_kl``
        (nats), ``calibration_error``, ``teacher_calibration_error``, ``negative_flips``, ``confidence_correlation``.

    Raises:
        ValueError: If the shapes do not fit, or an id names no class.

    Example:
        >>> import torch
        >>> student = torch.tensor([[2.0, 0.0], [2.0, 0.0], [0.0, 2.0]])
        >>> teacher = torch.tensor([[3.0, 0.0], [0.0, 3.0], [0.0, 3.0]])
        >>> numbers = compare_outputs(student, teacher, torch.tensor([0, 1, 0]))
        >>> for name in ("accuracy", "teacher_accuracy", "agreement", "agreement_on_mistakes", "negative_flips"):
        ...     print(name, round(numbers[name], 3))
        accuracy 0.333
        teacher_accuracy 0.667
        agreement 0.667
        agreement_on_mistakes 1.0
        negative_flips 0.333
    """
    student, teacher = student_logits, teacher_logits
    if student.shape != teacher.shape or student.ndim < 2:
        raise ValueError(
            f"compare_outputs: expected class scores (N, C) of equal shape, got {tuple(student.shape)} and "
            f"{tuple(teacher.shape)}."
        )
    values = {
        "agreement": _of(Agreement, student, teacher),
        "fidelity_kl": _of(FidelityKL, student, teacher, target),
        "confidence_correlation": _of(ConfidenceCorrelation, student, teacher, target),
    }
    if target is None:
        return values
    return {
        "accuracy": _of(Agreement, student, target),
        "teacher_accuracy": _of(Agreement, teacher, target),
        "agreement": values["agreement"],
        "agreement_on_mistakes": _of(AgreementOnMistakes, student, teacher, target),
        "fidelity_kl": values["fidelity_kl"],
        "calibration_error": _of(CalibrationError, student, target),
        "teacher_calibration_error": _of(CalibrationError, teacher, target),
        "negative_flips": _of(NegativeFlips, student, teacher, target),
        "confidence_correlation": values["confidence_correlation"],
    }


def _of(kind: Callable[..., Metric], *given: Tensor | None) -> float:
    metric = kind(sync_on_compute=False)  # the whole outputs are here, and other processes may not ask
    metric.to(next(one.device for one in given if one is not None))
    metric.update(*given)
    return float(metric.compute())
