"""Small tensor operations that the losses share."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

_LARGE = 2.0**30
_HIGH_TEMPERATURE = 16.0
SHORTEST = 1e-12
"""Vectors that are shorter have no direction; the number is that of torch's ``normalize``."""


def pair_up(student: Tensor | list[Tensor], teacher: Tensor | list[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Return the pairs of one student and one teacher tensor, or of two lists of them."""
    if isinstance(student, Tensor) and isinstance(teacher, Tensor):
        return [(student, teacher)]
    students = [student] if isinstance(student, Tensor) else student
    teachers = [teacher] if isinstance(teacher, Tensor) else teacher
    return list(zip(students, teachers, strict=True))


def add_up(values: Sequence[Tensor]) -> Tensor:
    """Add the losses of several pairs of layers. A single loss is returned unchanged, without an operation."""
    return values[0] if len(values) == 1 else torch.stack(list(values)).sum()


def add_up_halving(values: Sequence[Tensor]) -> Tensor:
    """Add the losses of several pairs of layers, the last with weight 1, the one before with 1/2, then 1/4."""
    return add_up([value * 0.5 ** (len(values) - 1 - i) for i, value in enumerate(values)])


def is_empty(tensors: Tensor | Sequence[Tensor] | None) -> bool:
    """Whether a tensor, or the first of several, holds no samples."""
    if tensors is None:
        return False
    first = tensors if isinstance(tensors, Tensor) else tensors[0]
    return first.numel() == 0 and first.ndim > 0 and first.shape[0] == 0


def zero_of(tensors: Tensor | Sequence[Tensor] | None) -> Tensor:
    """Return the loss of tensors without samples: 0, whose gradient is 0 for the parameters that computed them."""
    several = [tensors] if isinstance(tensors, Tensor) else tensors or []
    return add_up([upcast(one).sum() * 0.0 for one in several])


def leave_out_padding(value: Tensor, mask: Tensor, how: str | None) -> Tensor:
    """Leave padded tokens out of features.

    Args:
        value: Tokens (B, N, C), or as a map of one column (B, C, N, 1); their mean (B, C) is returned as it is.
        mask: Which of the tokens are valid, (B, N).
        how: ``"pack"`` gives the valid tokens as rows (M, C), ``"zero"`` and ``"rescale"`` set the others to zero.
            ``None`` changes nothing.
    """
    if how is None or value.ndim < 3:
        return value
    if mask.shape[1] != value.shape[2 if value.ndim == 4 else 1]:
        raise ValueError(
            f"The mask {tuple(mask.shape)} does not say which tokens of features {tuple(value.shape)} are padding; "
            "override unpack_batch to return Batch(..., mask=...) with as many columns as there are tokens."
        )
    if value.ndim == 4:
        return value.masked_fill(~mask[:, None, :, None], 0.0)
    if how == "pack":
        return value[mask]
    return value.masked_fill(~mask.unsqueeze(2), 0.0)


def pool_to_smaller(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Average-pool two maps (B, C, H, W) to the smaller height and the smaller width of the two."""
    height, width = (min(pair) for pair in zip(student.shape[2:], teacher.shape[2:], strict=True))
    return _pool(student, (height, width)), _pool(teacher, (height, width))


def upcast(tensor: Tensor) -> Tensor:
    """Return the tensor in float32 if it is in a 16-bit format, else as it is."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def unit(vectors: Tensor, dim: int) -> Tensor:
    """Return vectors of length one, and those of length zero as they are.

    torch's ``normalize`` divides a vector of zeros by 1e-12. Its gradient there is 1e12 times that of others, so one
    dead row or channel would throw the student away. Here a vector shorter than 1e-12 is divided by one.

    Args:
        vectors: Vectors along an axis.
        dim: The axis.
    """
    length = torch.linalg.vector_norm(vectors, dim=dim, keepdim=True)
    return vectors / torch.where(length > SHORTEST, length, 1.0)


def refuse_second_order() -> None:
    """Raise a ``RuntimeError`` in the backward pass of a function whose gradient is no function of its inputs.

    autograd switches gradients on in a backward pass with ``create_graph=True`` only. torch's ``once_differentiable``
    does not raise there if the incoming gradient is a constant, and gives another constant.
    """
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        raise RuntimeError(
            "The gradient of RKD, NST and CRD is computed together with the loss, so it cannot be differentiated again "
            "(create_graph=True). Leave that loss out of what needs second derivatives."
        )


def within_range(features: Tensor) -> Tensor:
    """Return features whose squares do not overflow, for a formula in which their common scale makes no difference.

    Features of float32 beyond 2^30 are divided by a power of two, which is exact; others are returned as they are.
    """
    largest = features.detach().abs().amax()
    scale = torch.exp2(-torch.log2(largest).floor())
    return features * torch.where(largest > _LARGE, scale, 1.0)


def precise(logits: Tensor, temperature: float | Tensor) -> Tensor:
    """Return logits in the format in which their divergence is computed: at least float32.

    A divergence is multiplied by the square of the temperature. From 16 on, near a match, float32 would give the
    rounding of the logarithms and not the divergence, so it is computed in float64.
    """
    high = not isinstance(temperature, Tensor) and temperature >= _HIGH_TEMPERATURE
    return wide(logits) if high else upcast(logits)


def wide(tensor: Tensor) -> Tensor:
    """Return the tensor in float64, or in float32 on a device that has no float64."""
    return tensor.float() if tensor.device.type == "mps" else tensor.double()


def _pool(features: Tensor, size: tuple[int, int]) -> Tensor:
    return features if features.shape[2:] == size else F.adaptive_avg_pool2d(features, size)
