"""What the networks themselves say, without a call: whether they were ever trained, and how large they are."""

import torch
from torch import nn
from torch.nn.modules.batchnorm import BatchNorm1d, BatchNorm2d, BatchNorm3d, SyncBatchNorm

from lightning_kd.capture.networks import num_parameters, original
from lightning_kd.doctor.findings import Finding

_NORMS = (BatchNorm1d, BatchNorm2d, BatchNorm3d, SyncBatchNorm)


def finding_of_untrained(teacher: nn.Module) -> Finding | None:
    """Return what to say of a teacher whose batch normalisations have never seen a batch.

    Args:
        teacher: The teacher.

    Example:
        >>> finding_of_untrained(nn.BatchNorm1d(3)).name
        'untrained teacher'
        >>> finding_of_untrained(nn.Linear(3, 3)) is None
        True
    """
    norms = [layer for layer in original(teacher).modules() if isinstance(layer, _NORMS) and layer.track_running_stats]
    if not norms or any(_has_seen(norm) for norm in norms):
        return None
    return Finding(
        "untrained teacher",
        f"None of the teacher's {len(norms)} batch normalisation(s) has seen a batch, so it was never trained.",
        "Its weights are not loaded: give teacher_weights=FILE, or load them before.",
    )


def _has_seen(norm: nn.Module) -> bool:
    mean, var, count = norm.running_mean, norm.running_var, norm.num_batches_tracked
    if not all(isinstance(one, torch.Tensor) and not one.is_meta for one in (mean, var)):
        return True  # not known
    assert isinstance(mean, torch.Tensor)
    assert isinstance(var, torch.Tensor)
    counted = isinstance(count, torch.Tensor) and bool(count)
    return counted or bool((mean != 0).any()) or bool((var != 1).any())


def finding_of_sizes(student: nn.Module, teacher: nn.Module) -> Finding | None:
    """Return what to say of a student that has no fewer parameters than the teacher."""
    own, its = num_parameters(student), num_parameters(teacher)
    if own < its:
        return None
    return Finding(
        "sizes",
        f"The student has {own:,} parameters, no fewer than the teacher ({its:,}).",
        "If it is to be smaller, look whether student and teacher are mixed up.",
        is_sure=False,
    )
