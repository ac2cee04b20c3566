"""Losses that teach nothing, which nobody would notice: of one position, of one sample, or of frozen layers."""

import math
from collections.abc import Mapping, Sequence

import torch
from lightning_utilities.core.rank_zero import rank_zero_warn

from lightning_kd.distributed.gather import is_distributed
from lightning_kd.engine.checks import only_frozen
from lightning_kd.losses.base import DistillationLoss, Shape
from lightning_kd.losses.features.at import ATLoss
from lightning_kd.losses.features.cwd import CWDLoss
from lightning_kd.losses.step_tensors import StepTensors


def tell_of_one_position(
    name: str, loss: DistillationLoss, student: Mapping[str, Shape], teacher: Mapping[str, Shape]
) -> None:
    """Warn of a loss that compares how a map is spread over its positions, where it has one.

    Args:
        name: The name of the part.
        loss: The loss.
        student: The shapes of the student's layers, as the loss reads them.
        teacher: Those of the teacher's layers.
    """
    if not isinstance(loss, ATLoss | CWDLoss):
        return
    for layers in zip(loss.student_layers, loss.teacher_layers, strict=True):
        pair = [shapes.get(layer, ()) for layer, shapes in zip(layers, (student, teacher), strict=True)]
        single = next((i for i, shape in enumerate(pair) if len(shape) > 2 and math.prod(shape[2:]) == 1), None)
        if single is not None:  # and the larger map is pooled to the smaller
            rank_zero_warn(
                f"Part {name!r}: {type(loss).__name__} compares how maps are spread over their positions, but "
                f"{layers[single]!r} returns {pair[single]}, of one position, so this pair is always 0. Name a layer "
                "before it, or use larger images."
            )


def tell_of_idle(losses: Sequence[tuple[str, DistillationLoss]], step: StepTensors) -> None:
    """Warn of losses that compare samples where there is one, and of those that nothing can be trained by.

    Args:
        losses: The losses that count, by name.
        step: The first step.
    """
    frozen = [name for name, loss in losses if torch.is_grad_enabled() and only_frozen(loss, step)]
    if frozen:
        rank_zero_warn(
            f"The loss part(s) {frozen} read only frozen layers of the student, so they cannot teach it; unfreeze a "
            "layer at or before those, or name later ones."
        )
    for name, loss in losses:
        if not loss.relational or (loss.gather and is_distributed()) or (loss.masking == "pack" and loss.reads_text):
            continue
        read = [step.student_features.get(layer) for layer in loss.student_layers] or [step.student_logits]
        if all(one is not None and len(one) == 1 for one in read):
            rank_zero_warn(
                f"Part {name!r}: {type(loss).__name__} compares the samples of a batch with one another, and the first "
                "batch has one sample, of which it can teach nothing. Use a larger batch size; accumulate_grad_batches "
                "makes no larger batches."
            )
