"""The student's output layer inside the loss, where only a few of the teacher's tokens are stored."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_kd.distributed.whole_parameter import is_split, whole_parameter
from lightning_kd.losses.tensors import check_differentiated_once, upcast
from lightning_kd.losses.tokens.chunks import Gradients, product_format, tokens_at_a_time
from lightning_kd.losses.tokens.fused import scaled_gradients
from lightning_kd.losses.tokens.heads import Aim, Head
from lightning_kd.losses.tokens.selection import choose
from lightning_kd.losses.tokens.sparse import Missing, SparseLogits, sparse_values


def fused_sparse_sum(
    student: Tensor,
    teacher: SparseLogits,
    head: Head,
    aim: Aim,
    missing: Missing,
    *,
    counts: Tensor | None = None,
    labels: Tensor | None = None,
    memory: Literal["save", "recompute"] = "save",
    chunk: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the sum over tokens of divergence and cross entropy with their factors, and that of the cross entropy.

    Args:
        student: The student's hidden states before its head (B, T, H), or of tokens in rows (M, H).
        teacher: The teacher's tokens (B, T, K), or (M, K).
        head: The student's head.
        aim: What is computed.
        missing: What the tokens are that are not stored.
        counts: Which tokens (B, T) count, ``None`` for all.
        labels: The token ids to predict (B, T), if the cross entropy has a factor.
        memory: Whether the gradient is computed together with the value and kept, or later from the hidden states.
        chunk: How many tokens are worked on together.
    """
    rows = choose(student, counts)
    targets = choose(labels, counts, axes=0).long() if labels is not None and aim.cross_entropy else None
    weight, size = getattr(head.module, "weight", None), 128
    if head.is_plain:
        linear = cast(nn.Linear, head.module)
        parameters = [whole_parameter(one) for one in (linear.weight, linear.bias) if one is not None]
    else:
        if any(is_split(one) for one in head.module.parameters()):
            raise ValueError(
                "TokenKDLoss: an output layer that is no plain nn.Linear cannot be fused while FSDP2 splits it; use "
                "fused=False, or DDP."
            )
        parameters = [one for one in head.module.parameters() if one.requires_grad]
    if isinstance(weight, Tensor) and weight.ndim == 2:
        size = tokens_at_a_time(rows, weight)
    work = _Chunks(aim, head, missing, chunk or size, product_format(rows), teacher.sampled)
    tokens = choose(teacher.ids, counts), choose(teacher.log_probs.detach(), counts)
    sums = cast(Any, _Fused).apply(work, memory == "save", *tokens, targets, rows, *parameters)
    return cast("tuple[Tensor, Tensor]", sums)


@dataclass(frozen=True)
class _Chunks:
    """Chunks of tokens, each with a graph of its own."""

    aim: Aim
    head: Head
    missing: Missing
    size: int
    format: torch.dtype
    sampled: bool

    def run(
        self,
        wanted: Sequence[bool],
        ids: Tensor,
        log_probs: Tensor,
        labels: Tensor | None,
        student: Tensor,
        *parameters: Tensor,
    ) -> tuple[Tensor, Gradients]:
        """Return the sums, and the gradients of hidden states and parameters that are wanted."""
        total = torch.zeros(2, dtype=torch.promote_types(self.format, torch.float32), device=student.device)
        gradients: Gradients = [None] * len(wanted)
        if wanted[0]:
            gradients[0] = torch.zeros_like(student)
        own = parameters
        if self.head.is_plain:  # a leaf of the chunk's graph, of a parameter that FSDP2 has split too
            own = tuple(one.detach().requires_grad_(want) for one, want in zip(parameters, wanted[1:], strict=True))
        for start in range(0, len(student), self.size):
            chunk = slice(start, start + self.size)
            hidden = student[chunk].detach().requires_grad_(wanted[0])
            of_chunk = None if labels is None else labels[chunk]
            with torch.set_grad_enabled(any(wanted)):
                kept = SparseLogits(ids[chunk], log_probs[chunk], self.sampled)
                value, sums = self._value(hidden, kept, of_chunk, own)
            total += sums
            if not value.requires_grad:
                continue
            given = [one for one, want in zip((hidden, *own), wanted, strict=True) if want]
            found = iter(torch.autograd.grad(value, given, allow_unused=True))
            for place, want in enumerate(wanted):
                more = next(found) if want else None
                if more is None:
                    continue
                if place == 0:
                    assert gradients[0] is not None
                    gradients[0][chunk] = more
                else:
                    before = gradients[place]
                    gradients[place] = more if before is None else before.add_(more)
        return total, gradients

    def _value(
        self, hidden: Tensor, kept: SparseLogits, labels: Tensor | None, own: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        output = upcast(F.linear(hidden, *own) if self.head.is_plain else self.head.module(hidden))
        aim, tail = self.aim, self.head.tail
        with torch.autocast(hidden.device.type, enabled=False):
            if tail.cap is not None:
                output = tail.cap * torch.tanh(output * (tail.scale / tail.cap))
            elif tail.scale != 1.0:
                output = output * tail.scale
            if tail.bias is not None:
                output = output + tail.bias
            divergence = sparse_values(output, kept, aim.form, self.missing, aim.temperature).sum()
            if labels is None:
                return aim.factor * divergence, torch.stack([divergence, torch.zeros_like(divergence)]).detach()
            entropy = F.cross_entropy(output, labels, reduction="sum")
        return aim.factor * divergence + aim.cross_entropy * entropy, torch.stack([divergence, entropy]).detach()


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, work: _Chunks, saves: bool, *tensors: Any) -> tuple[Tensor, Tensor]:
        ctx.work, ctx.saves = work, saves
        total, ctx.gradients = work.run(ctx.needs_input_grad[5:] if saves else [False] * len(tensors[3:]), *tensors)
        if not saves:
            ctx.save_for_backward(*tensors)
        entropy = total[1].clone()
        ctx.mark_non_differentiable(entropy)
        return work.aim.factor * total[0] + work.aim.cross_entropy * total[1], entropy

    @staticmethod
    def backward(ctx: Any, upstream: Tensor, _: Tensor) -> tuple[Any, ...]:
        check_differentiated_once("TokenKDLoss")
        work: _Chunks = ctx.work
        if not ctx.saves:
            narrow = work.format.itemsize < 4
            with torch.autocast(upstream.device.type, work.format if narrow else torch.bfloat16, enabled=narrow):
                ctx.gradients = work.run(ctx.needs_input_grad[5:], *ctx.saved_tensors)[1]
        return None, None, None, None, None, *scaled_gradients(ctx, upstream)
