"""The head of the contrastive losses: one linear layer onto the unit sphere."""

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_kd.losses.base import LOGITS, DistillationLoss, Shape
from lightning_kd.losses.tensors import in_range, unit, upcast


class UnitEmbedding(nn.Linear):
    """A linear layer whose outputs are brought to length one, computed in at least float32.

    Features with several axes beside the batch are flattened.
    """

    def forward(self, features: Tensor) -> Tensor:
        """Embed features (B, ...) as unit vectors (B, width)."""
        with torch.autocast(device_type=features.device.type, enabled=False):
            weight, bias = upcast(self.weight), upcast(self.bias)
            rows = F.linear(flattened(features, self.in_features).to(weight.dtype), weight, bias)
            return unit(in_range(rows, 2, dim=(1,)), dim=1)


def flattened(features: Tensor, numbers: int) -> Tensor:
    """Return features (B, ...) as rows, for a linear layer that was made for so many numbers.

    Raises:
        ValueError: If a sample has more or fewer by now, as maps of images of another size do.
    """
    rows = features.flatten(1)
    if rows.shape[1] != numbers:
        raise ValueError(
            f"Features of shape {tuple(features.shape)} have {rows.shape[1]} numbers for each sample, but the linear "
            f"layer that embeds them was made for the {numbers} of the first samples. Give inputs of one size, or "
            "name a layer whose size does not depend on theirs, such as the pooled features before the head."
        )
    return rows


def embeddings(
    loss: DistillationLoss, student_shapes: Mapping[str, Shape], teacher_shapes: Mapping[str, Shape], dim: int
) -> tuple[UnitEmbedding, UnitEmbedding]:
    """Make the heads of both sides for a loss that reads one layer of each.

    Args:
        loss: The loss.
        student_shapes: Shape of the named student layer.
        teacher_shapes: Shape of the named teacher layer.
        dim: Width of the embeddings.

    Raises:
        ValueError: If several layers are named, or a shape has no axis beside the batch.
    """
    name = type(loss).__name__
    student_layers, teacher_layers = loss.student_layers, loss.teacher_layers
    if len(student_layers) > 1 or len(teacher_layers) > 1:
        raise ValueError(
            f"{name}: expected one layer a side, got {list(student_layers)} and {list(teacher_layers)}; add one {name} "
            "for each pair."
        )
    student = student_shapes[(student_layers or (LOGITS,))[0]]
    teacher = teacher_shapes[(teacher_layers or (LOGITS,))[0]]
    if len(student) < 2 or len(teacher) < 2:
        raise ValueError(
            f"{name}: expected features (B, ...) with an axis beside the batch, got student {student} and teacher "
            f"{teacher}; name other layers."
        )
    return UnitEmbedding(math.prod(student[1:]), dim), UnitEmbedding(math.prod(teacher[1:]), dim)
