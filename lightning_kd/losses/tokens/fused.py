"""Token distillation with both output layers inside: the logits (tokens, vocabulary) never stand whole in memory.

The hidden states of a chunk of tokens are multiplied by both heads, and the gradient is written over the student's
logits in blocks that fit into a core's cache. The gradients of hidden states and head are added up on the way, so that
nothing of the size of the logits is kept. Chunks are worked on one after another, forward and backward together
(``memory="save"``), or once more in the backward pass (``"recompute"``).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_kd.capture.private import has_hooks
from lightning_kd.losses.tensors import refuse_second_order, upcast
from lightning_kd.losses.tokens.dense import rows_at_a_time
from lightning_kd.losses.tokens.divergences import Form, closed_form, log_probabilities, unbounded
from lightning_kd.losses.tokens.selection import choose

Memory = Literal["save", "recompute"]
_ON_DEVICE = 2**28
"""Bytes of the logits of one chunk on an accelerator."""


@dataclass(frozen=True)
class Tail:
    """What a model does with the output of its head: ``cap * tanh(scale * y / cap) + bias``.

    Args:
        scale: Factor of the logits.
        cap: Bound of the logits (soft-capping), ``None`` without one.
        bias: What is added last, without a gradient.
    """

    scale: float = 1.0
    cap: float | None = None
    bias: Tensor | None = None

    def __call__(self, output: Tensor) -> tuple[Tensor, Tensor | float]:
        """Return the logits, and their slope in the output of the head."""
        slope: Tensor | float = self.scale
        if self.cap is not None:
            bent = torch.tanh(output * (self.scale / self.cap))
            output, slope = bent * self.cap, bent.square_().neg_().add_(1.0).mul_(self.scale)
        elif self.scale != 1.0:
            output = output * self.scale
        return (output if self.bias is None else output + self.bias), slope


@dataclass(frozen=True)
class Head:
    """The output layer of a model, and what comes after it.

    Args:
        module: Called with hidden states (M, H); a plain ``nn.Linear`` is multiplied here, which is faster.
        tail: What the model does with its output.
    """

    module: nn.Module
    tail: Tail = Tail()

    @property
    def is_plain(self) -> bool:
        """Whether the module is a linear layer and nothing else, hooks included."""
        return type(self.module) is nn.Linear and not has_hooks(self.module)


@dataclass(frozen=True)
class Aim:
    """What is computed of the logits of a chunk.

    Args:
        divergence: Which divergence, with its settings as in ``token_kd_loss``.
        temperature: Softening of both distributions.
        factor: Factor of the divergence.
        cross_entropy: Factor of the cross entropy with the labels.
    """

    divergence: str = "forward_kl"
    alpha: float = 0.1
    beta: float = 0.5
    ratio: float = 0.5
    temperature: float = 1.0
    factor: float = 1.0
    cross_entropy: float = 0.0

    @property
    def form(self) -> Form:
        """The closed form of the divergence."""
        return closed_form(self.divergence, self.alpha, self.beta, self.ratio)


def fused_sum(
    student: Tensor,
    teacher: Tensor,
    heads: tuple[Head, Head],
    aim: Aim,
    *,
    counts: Tensor | None = None,
    labels: Tensor | None = None,
    memory: Memory = "save",
    chunk: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the sum over tokens of divergence and cross entropy with their factors, and that of the cross entropy.

    Args:
        student: The student's hidden states before its head (B, T, H), or of tokens in rows (M, H).
        teacher: The teacher's (B, T, K), or (M, K).
        heads: The heads of both.
        aim: What is computed.
        counts: Which tokens (B, T) count, ``None`` for all.
        labels: The token ids to predict (B, T), if the cross entropy has a factor.
        memory: Whether the gradient is computed together with the value and kept, or later from the hidden states.
        chunk: How many tokens are worked on together; by default a number that keeps the logits of a chunk small
            against the head.
    """
    ours, theirs = heads
    targets = labels if aim.cross_entropy else None
    student, teacher = choose(student, counts), choose(teacher.detach(), counts)
    targets = None if targets is None else choose(targets, counts, axes=0).long()
    if ours.is_plain and theirs.is_plain:
        mine, its = cast(nn.Linear, ours.module), cast(nn.Linear, theirs.module)
        work = _Linear(aim, (ours.tail, theirs.tail), _size(chunk, student, mine.weight), _format(student))
        others = [_detached(its.weight), _detached(its.bias)]
        sums = cast(Any, _FusedLinear).apply(work, memory, student, mine.weight, mine.bias, teacher, *others, targets)
    else:
        parameters = [p for p in ours.module.parameters() if p.requires_grad]
        called = _Called(aim, (ours, theirs), parameters, chunk or 128, _format(student))
        sums = cast(Any, _FusedCall).apply(called, memory, student, teacher, targets, *parameters)
    return cast("tuple[Tensor, Tensor]", sums)


def tokens_at_a_time(hidden: Tensor, weight: Tensor) -> int:
    """Return how many tokens are worked on together.

    On the CPU the logits of both networks take at most half of the bytes of the head's gradient; fewer than 64 tokens
    would make the products slow.
    """
    vocabulary, width = weight.shape
    return max(width // 4 if hidden.is_cpu else _ON_DEVICE // (4 * vocabulary), 64)


def write_gradient(
    student: Tensor, teacher: Tensor, labels: Tensor | None, aim: Aim, tails: tuple[Tail, Tail]
) -> Tensor:
    """Write the gradient over the student's outputs (C, V); return the sums of divergence and cross entropy (2).

    Args:
        student: Output of the student's head, in at least float32.
        teacher: Output of the teacher's head.
        labels: The token ids to predict (C), for the cross entropy.
        aim: What is computed.
        tails: What comes after the heads.
    """
    form, scale = aim.form, aim.factor / aim.temperature
    total = student.new_zeros(2)
    size = rows_at_a_time(student)
    for start in range(0, len(student), size):
        rows = student[start : start + size]
        logits, slope = tails[0](rows)
        log_q = log_probabilities(logits, aim.temperature)
        surprise = None
        if labels is not None:
            surprise = log_q.clone() if aim.temperature == 1.0 else log_probabilities(logits, 1.0)
            ids = labels[start : start + size].unsqueeze(-1)
            total[1] -= surprise.gather(-1, ids).sum()
            surprise.exp_().scatter_add_(-1, ids, surprise.new_full(ids.shape, -1.0))
        other, _ = tails[1](teacher[start : start + size])
        total[0] += unbounded(form(log_q, log_probabilities(other, aim.temperature))).sum()
        if surprise is not None:
            log_q.mul_(scale).add_(surprise, alpha=aim.cross_entropy)
        torch.mul(log_q, slope if surprise is not None else slope * scale, out=rows)
    return total


Gradients = list[Tensor | None]


@dataclass(frozen=True)
class _Linear:
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
        """Return the sums, and the gradients of hidden states, weight and bias that are wanted."""
        wide = torch.promote_types(self.format, torch.float32)
        of_hidden = torch.empty(student.shape, dtype=self.format, device=student.device) if wanted[0] else None
        of_weight = torch.zeros(weight.shape, dtype=wide, device=weight.device) if wanted[1] else None
        of_bias = torch.zeros(len(weight), dtype=wide, device=weight.device) if wanted[2] else None
        total = torch.zeros(2, dtype=wide, device=student.device)
        with torch.autocast(student.device.type, enabled=False):
            matrix, offset, matrix_t, offset_t = (
                None if one is None else one.to(self.format) for one in (weight, bias, teacher_weight, teacher_bias)
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
                    of_bias += output.sum(0)
                output = output.to(self.format)
                if of_hidden is not None:
                    torch.mm(output, matrix, out=of_hidden[chunk])
                if of_weight is not None:
                    _add_product(of_weight, output.T, hidden)
                del output
        return total, [of_hidden, of_weight, of_bias]


class _FusedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, work: _Linear, memory: Memory, *tensors: Any) -> tuple[Tensor, Tensor]:
        ctx.work, ctx.saves = work, memory == "save"
        wanted = ctx.needs_input_grad[2:5]
        total, gradients = work.run(wanted if ctx.saves else (False,) * 3, *tensors)
        # `save_for_backward` would hold a second reference, so that the gradient of the head would be copied once more
        ctx.gradients = gradients
        if not ctx.saves:
            ctx.save_for_backward(*tensors)
        return _sums(ctx, total, work.aim)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor, _: Tensor) -> tuple[Any, ...]:
        refuse_second_order()
        if not ctx.saves:
            ctx.gradients = ctx.work.run(ctx.needs_input_grad[2:5], *ctx.saved_tensors)[1]
        return None, None, *_scaled(ctx, upstream), None, None, None, None


@dataclass(frozen=True)
class _Called:
    """Chunks of any two heads, which are called: with adapters, transforms, or hooks of others."""

    aim: Aim
    heads: tuple[Head, Head]
    parameters: Sequence[Tensor]
    size: int
    format: torch.dtype

    def run(
        self, wanted: Sequence[bool], student: Tensor, teacher: Tensor, labels: Tensor | None
    ) -> tuple[Tensor, Gradients]:
        """Return the sums, and the gradients of hidden states and parameters that are wanted."""
        ours, theirs = self.heads
        of_hidden = torch.empty_like(student) if wanted[0] else None
        gradients: Gradients = [None] * len(self.parameters)
        total: Tensor | None = None
        for start in range(0, len(student), self.size):
            chunk = slice(start, start + self.size)
            hidden = student[chunk].detach().requires_grad_(wanted[0])
            with torch.set_grad_enabled(any(wanted)):
                output = ours.module(hidden)
            with torch.no_grad():
                other = upcast(theirs.module(teacher[chunk]))
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


class _FusedCall(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, work: _Called, memory: Memory, *tensors: Any) -> tuple[Tensor, Tensor]:
        ctx.work, ctx.saves = work, memory == "save"
        wanted = [ctx.needs_input_grad[2], *ctx.needs_input_grad[5:]]
        total, gradients = work.run(wanted if ctx.saves else [False], *tensors[:3])
        ctx.gradients = gradients
        if not ctx.saves:
            ctx.save_for_backward(*tensors[:3])
        return _sums(ctx, total, work.aim)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor, _: Tensor) -> tuple[Any, ...]:
        refuse_second_order()
        work: _Called = ctx.work
        if not ctx.saves:
            wanted = [ctx.needs_input_grad[2], *ctx.needs_input_grad[5:]]
            narrow = work.format.itemsize < 4
            with torch.autocast(upstream.device.type, work.format if narrow else torch.bfloat16, enabled=narrow):
                ctx.gradients = work.run(wanted, *ctx.saved_tensors)[1]
        of_hidden, *gradients = _scaled(ctx, upstream)
        return None, None, of_hidden, None, None, *gradients


def _size(chunk: int | None, student: Tensor, weight: Tensor) -> int:
    return chunk or tokens_at_a_time(student, weight)


def _format(hidden: Tensor) -> torch.dtype:
    """Return the format of the products: that of autocast where it is on, else that of the hidden states."""
    device = hidden.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype


def _detached(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.detach()


def _add_product(to: Tensor, left: Tensor, right: Tensor) -> None:
    if to.dtype == left.dtype:
        to.addmm_(left, right)
    else:
        to += left @ right


def _plus(total: Tensor | None, more: Tensor | None) -> Tensor | None:
    return more if total is None else total if more is None else total.add_(more)


def _sums(ctx: Any, total: Tensor, aim: Aim) -> tuple[Tensor, Tensor]:
    value = aim.factor * total[0] + aim.cross_entropy * total[1] if aim.cross_entropy else aim.factor * total[0]
    entropy = total[1].clone()
    ctx.mark_non_differentiable(entropy)
    return value, entropy


def _scaled(ctx: Any, upstream: Tensor) -> Gradients:
    """Take the gradients out of a context, times the one that comes in: a loss scale, a weight, a denominator."""
    gradients: Gradients | None = ctx.gradients
    ctx.gradients = None
    if gradients is None:
        raise RuntimeError(
            "The gradient of a fused TokenKDLoss was used up by a backward pass; for a second one compute the loss "
            "again, or use fused=False."
        )
    return [None if one is None else one.mul_(upstream) for one in gradients]
