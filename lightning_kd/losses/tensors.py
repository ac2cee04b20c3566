"""Small tensor operations that the losses share."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

_SMALL, _SMALL_WHEN_SOFT = 1e-4, 5e-3
"""Below, a divergence is computed in float64: at temperatures below 10, and from there on."""


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
    _check_real(tensor)
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def upcast_alike(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Return two tensors in one format, the wider of the two, and at least float32."""
    student, teacher = upcast(student), upcast(teacher)
    if student.dtype == teacher.dtype:
        return student, teacher
    dtype = torch.promote_types(student.dtype, teacher.dtype)
    return student.to(dtype), teacher.to(dtype)


def wide(tensor: Tensor) -> Tensor:
    """Return the tensor in float64, or in float32 on a device that has no float64."""
    _check_real(tensor)
    return tensor.float() if tensor.device.type == "mps" else tensor.double()


def nonzero(length: Tensor, shortest: float = 1e-12) -> Tensor:
    """Return lengths to divide by: 1 where a vector has none, so that its gradient is of ordinary size.

    A bound of 1e-12 in its place would multiply the gradient of a dead channel or a padded sample by 1e12.
    """
    return length.masked_fill(length <= shortest, 1.0)


def unit(vectors: Tensor, dim: int) -> Tensor:
    """Bring vectors to length one along an axis. A vector of zeros stays as it is, with a gradient of ordinary size."""
    length: Tensor = torch.linalg.vector_norm(vectors, dim=dim, keepdim=True)
    return vectors / nonzero(length)


def in_range(tensor: Tensor, power: int, dim: tuple[int, ...] | None = None) -> Tensor:
    """Multiply a tensor by powers of two wherever a power of its numbers would overflow.

    For formulas that do not depend on the size of what they are given. A power of two changes no digit, and numbers of
    ordinary size are left alone.

    Args:
        tensor: The numbers, in at least float32.
        power: To what power a formula raises them, all in all.
        dim: Axes that share a factor, all by default.
    """
    if tensor.numel() == 0:
        return tensor
    ordinary = 2.0 ** (80 / power)
    with torch.no_grad():
        if can_look(tensor) and torch.linalg.vector_norm(tensor).item() <= ordinary:
            return tensor  # none is longer than all together
        largest = tensor.abs().amax(dim=tuple(range(tensor.ndim)) if dim is None else dim, keepdim=True)
        factor = torch.where(largest > ordinary, torch.frexp(largest).mantissa / largest, 1.0)
    return tensor * factor


def exact_if_small(value: Tensor, size: float, temperature: float | Tensor, exact: Callable[[], Tensor]) -> Tensor:
    """Give a divergence the number that was computed in float64 where it is small, and leave its gradient alone.

    Terms of the size of 1 cancel near a match. What single precision leaves of them may be ten times too large, or
    negative. The squared temperature multiplies it.

    Args:
        value: One divergence or several, >= 0 but for rounding.
        size: By what their sum is divided to decide whether it is small.
        temperature: What the logits were divided by; a high one makes all divergences small.
        exact: Computes the same in float64.
    """
    soft = not isinstance(temperature, Tensor) and temperature >= 10.0
    small = _SMALL_WHEN_SOFT if soft else _SMALL
    looks = can_look(value)
    if looks and value.detach().sum().item() / size >= small:
        return value
    with torch.no_grad():
        mean = value.sum() / size
        number = exact().clamp_min(0.0).to(value.dtype)
        if not looks:
            number = torch.where(mean < small, number, value)
    return number + (value - value.detach())


def check_differentiated_once(function: str) -> None:
    """Raise a ``RuntimeError`` if the backward pass that is under way is to be differentiated itself."""
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        raise RuntimeError(
            f"{function}: its gradient is computed along with the value, so it cannot be differentiated again; "
            "call backward without create_graph=True, or leave this loss out of what you differentiate twice."
        )


def can_look(tensor: Tensor) -> bool:
    """Whether to read a number costs nothing: a device would have to wait, and a compiled graph would break."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()


def _check_real(tensor: Tensor) -> None:
    if not tensor.is_floating_point():
        raise ValueError(
            f"expected features or logits of real numbers, got a tensor of type {tensor.dtype} and shape "
            f"{tuple(tensor.shape)}; convert it first: torch.view_as_real or .abs() for complex numbers, .float() for "
            "integers."
        )


def _pool(features: Tensor, size: tuple[int, int]) -> Tensor:
    return features if features.shape[2:] == size else F.adaptive_avg_pool2d(features, size)
