"""The divergence of whole logits, row by row, with a gradient that is computed together with the value."""

from typing import Any, cast

import torch
from torch import Tensor

from lightning_kd.losses.tensors import check_differentiated_once
from lightning_kd.losses.tokens.divergences import Form, log_probabilities, settled

_CACHE = 2**17
"""Numbers that a core works on at a time on the CPU: few enough to stay in its cache."""
_LAUNCH = 2**25
"""Numbers that an accelerator works on at a time: enough to keep it busy, and far from its memory."""


def dense_values(student: Tensor, teacher: Tensor, form: Form, temperature: float) -> Tensor:
    """Return the divergence of each row (M, V) of logits, with a gradient for the student's."""
    values: Tensor = cast(Any, _Dense).apply(student, teacher, form, temperature)
    return values


def rows_at_a_time(logits: Tensor) -> int:
    """Return how many rows of logits are worked on together."""
    if torch.compiler.is_compiling():
        return max(len(logits), 1)
    numbers = _CACHE * torch.get_num_threads() if logits.is_cpu else _LAUNCH
    return max(numbers // max(logits.shape[-1], 1), 1)


class _Dense(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, form: Form, temperature: float) -> Tensor:
        size = rows_at_a_time(student)
        with torch.autocast(student.device.type, enabled=False):
            if len(student) <= size:
                gradient = log_probabilities(student, temperature)
                values = form(gradient, log_probabilities(teacher, temperature))
            else:
                gradient = torch.empty_like(student, memory_format=torch.contiguous_format)
                values = student.new_empty(len(student))
                for start in range(0, len(student), size):
                    rows = slice(start, start + size)
                    of_rows = log_probabilities(student[rows], temperature)
                    values[rows] = form(of_rows, log_probabilities(teacher[rows], temperature))
                    gradient[rows] = of_rows
        ctx.save_for_backward(gradient if temperature == 1.0 else gradient.div_(temperature))
        return settled(values)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        check_differentiated_once("token_kd_loss")
        (gradient,) = ctx.saved_tensors
        return gradient * upstream.unsqueeze(-1), None, None, None
