"""Chunks of tokens that go through both output layers: values and gradients, the logits never whole."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_kd.losses.tensors import upcast
from lightning_kd.losses.tokens.dense import rows_at_a_time
from lightning_kd.losses.tokens.divergences import log_probabilities, settled
from lightning_kd.losses.tokens.heads import Aim, Head, Tail

Gradients = list[Tensor | None]
_ON_DEVICE = 2**28
"""Bytes of the logits of one chunk on an accelerator."""


def tokens_at_a_time(hidden: Tensor, weight: Tensor) -> int:
    """Return how many tokens are worked on together.

    On the CPU the logits of both networks take about a sixth of the bytes of the head's gradient; fewer tokens would
    make the products slow.
    """
    vocabulary, width = weight.shape
    return max(width // 12, 40) if hidden.is_cpu else max(_ON_DEVICE // (4 * vocabulary), 64)


def write_gradient(
    student: Tensor, teacher: Tensor, labels: Tensor | None, aim: Aim, tails: tuple[Tail, Tail]
) -> Tensor:
    """Write the gradient over the student's outputs (C, V); return the sums of divergence and cross entropy (2).

    Args:
        student: Output of the student's head, in at least float32; with labels whole, also beyond the teacher's.
        teacher: Output of the teacher's head.
        labels: The token ids to predict (C), for the cross entropy.
        aim: What is computed.
        tails: What comes after the heads.
    """
    form, scale = aim.form, aim.factor / aim.temperature
    total = student.new_zeros(2)
    size = rows_at_a_time(student)
    common = teacher.shape[-1]
    alike = student.shape[-1] == common
    for start in range(0, len(student), size):
        rows = student[start : start + size]
        logits, slope = tails[0](rows)
        log_q = log_probabilities(logits if alike else logits[:, :common], aim.temperature)
        surprise = None
        if labels is not None:
            surprise = log_q.clone() if alike and aim.temperature == 1.0 else log_probabilities(logits, 1.0)
            ids = labels[start : start + size].unsqueeze(-1)
            total[1] -= surprise.gather(-1, ids).sum()
            surprise.exp_().scatter_add_(-1, ids, surprise.new_full(ids.shape, -1.0))
        other, _ = tails[1](teacher[start : start + size])
        total[0] += settled(form(log_q, log_probabilities(other, aim.temperature))).sum()
        if surprise is not None and alike:
            log_q.mul_(scale).add_(surprise, alpha=aim.cross_entropy)
        elif surprise is not None:
            surprise.mul_(aim.cross_entropy)[:, :common].add_(log_q, alpha=scale)
            log_q = surprise
        torch.mul(log_q, slope if surprise is not None else slope * scale, out=rows)
    return total


@dataclass(frozen=True)
class LinearChunks:
    """Chunks of two linear heads."""

    aim: Aim
    tails: tuple[Tail, Tail]
    size: int
    format: torch.dtype

    def run(
        self,
        wanted: Sequence[bool],
        student: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        teacher: Tensor,
        teacher_weight: Tensor,
        teacher_bias: Tensor | None,
        labels: Tensor | None,
    ) -> tuple[Tensor, Gradients]:
        """Return the sums, and the gradients of hidden states, weight and bias that are wanted.

        What the larger vocabulary has beyond the smaller one is left out of the divergence, not of the cross entropy.
        """
        common = min(len(weight), len(teacher_weight))
        size = common if labels is None else len(weight)
        wide = torch.promote_types(self.format, torch.float32)
        of_hidden = torch.empty(student.shape, dtype=self.format, device=student.device) if wanted[0] else None
        of_weight = torch.zeros(weight.shape, dtype=wide, device=weight.device) if wanted[1] else None
        of_bias = torch.zeros(len(weight), dtype=wide, device=weight.device) if wanted[2] else None
        total = torch.zeros(2, dtype=wide, device=student.device)
        with torch.autocast(student.device.type, enabled=False):
            matrix, offset, matrix_t, offset_t = (
                None if one is None else one[:rows].to(self.format)
                for one, rows in ((weight, size), (bias, size), (teacher_weight, common), (teacher_bias, common))
            )
            assert matrix is not None
            assert matrix_t is not None
            for start in range(0, len(student), self.size):
                chunk = slice(start, start + self.size)
                hidden = student[chunk].to(self.format)
                output = F.linear(hidden, matrix, offset).to(wide)
                other = F.linear(teacher[chunk].to(self.format), matrix_t, offset_t).to(wide)
                of_chunk = None if labels is None else labels[chunk]
                total += write_gradient(output, other, of_chunk, self.aim, self.tails)
                del other  # else the logits of two chunks would stand side by side
                if of_bias is not None:
                    of_bias[:size] += output.sum(0)
                output = output.to(self.format)
                if of_hidden is not None:
                    torch.mm(output, matrix, out=of_hidden[chunk])
                if of_weight is not None:
                    _add_product(of_weight[:size], output.T, hidden)
                del output
        return total, [of_hidden, of_weight, of_bias]


@dataclass(frozen=True)
class CalledChunks:
    """Chunks of any two heads, which are called: with adapters, transforms, or hooks of others."""

    aim: Aim
    heads: tuple[Head, Head]
    parameters: Sequence[Tensor]
    size: int
    format: torch.dtype

    def run(
        self, wanted: Sequence[bool], student: Tensor, teacher: Tensor, labels: Tensor | None
    ) -> tuple[Tensor, Gradients]:
        """Return the sums, and the gradients of hidden states and parameters that are wanted; see ``LinearChunks``."""
        ours, theirs = self.heads
        of_hidden = torch.empty_like(student) if wanted[0] else None
        gradients: Gradients = [None] * len(self.parameters)
        total: Tensor | None = None
        for start in range(0, len(student), self.size):
            chunk = slice(start, start + self.size)
            hidden = student[chunk].detach().requires_grad_(wanted[0])
            with torch.no_grad():
                other = upcast(theirs.module(teacher[chunk]))
            with torch.set_grad_enabled(any(wanted)):
                output = ours.module(hidden)
                size = min(output.shape[-1], other.shape[-1])
                output, other = output if labels is not None else output[..., :size], other[..., :size]
            with torch.no_grad():
                slope = output.detach().to(torch.promote_types(output.dtype, torch.float32), copy=True)
                of_chunk = None if labels is None else labels[chunk]
                with torch.autocast(student.device.type, enabled=False):
                    sums = write_gradient(slope, other, of_chunk, self.aim, (ours.tail, theirs.tail))
                total = sums if total is None else total + sums
                del other
            if not output.requires_grad:
                continue
            inputs = [hidden] * wanted[0] + list(self.parameters)
            found = list(torch.autograd.grad(output, inputs, slope.to(output.dtype), allow_unused=True))
            del output, slope
            if of_hidden is not None:
                of_hidden[chunk] = found.pop(0)
            gradients = [_plus(*pair) for pair in zip(gradients, found, strict=True)]
        return student.new_zeros(2) if total is None else total, [of_hidden, *gradients]


def product_format(hidden: Tensor) -> torch.dtype:
    """Return the format of the products: that of autocast where it is on, else that of the hidden states."""
    device = hidden.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype


def _add_product(to: Tensor, left: Tensor, right: Tensor) -> None:
    if to.dtype == left.dtype:
        to.addmm_(left, right)
    else:
        to += left @ right


def _plus(total: Tensor | None, more: Tensor | None) -> Tensor | None:
    return more if total is None else total if more is None else total.add_(more)
