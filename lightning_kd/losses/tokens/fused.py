"""Token distillation with both output layers inside: the logits (tokens, vocabulary) never stand whole in memory.

The hidden states of a chunk of tokens are multiplied by both heads, and the gradient is written over the student's
logits in blocks that fit into a core's cache. The gradients of hidden states and head are added up on the way, so that
nothing of the size of the logits is kept. Chunks are worked on one after another, forward and backward together
(``memory="save"``), or once more in the backward pass (``"recompute"``).
"""

from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from lightning_kd.distributed.whole_parameter import is_split, whole_parameter
from lightning_kd.losses.tensors import check_differentiated_once
from lightning_kd.losses.tokens.chunks import CalledChunks, Gradients, LinearChunks, product_format, tokens_at_a_time
from lightning_kd.losses.tokens.heads import Aim, Head
from lightning_kd.losses.tokens.operator import in_one_graph
from lightning_kd.losses.tokens.selection import choose

Memory = Literal["save", "recompute"]


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
    if torch.compiler.is_compiling() and ours.is_plain and theirs.is_plain:
        return in_one_graph(student, teacher.detach(), heads, aim, counts, targets, chunk or 0)
    student, teacher = choose(student, counts), choose(teacher.detach(), counts)
    targets = None if targets is None else choose(targets, counts, axes=0).long()
    if ours.is_plain and theirs.is_plain:
        mine, its = cast(nn.Linear, ours.module), cast(nn.Linear, theirs.module)
        work = LinearChunks(
            aim, (ours.tail, theirs.tail), chunk or tokens_at_a_time(student, mine.weight), product_format(student)
        )
        own = [_whole(mine.weight), _whole(mine.bias)]
        others = [_detached(_whole(its.weight)), _detached(_whole(its.bias))]
        sums = cast(Any, _FusedLinear).apply(work, memory, student, *own, teacher, *others, targets)
    else:
        if any(is_split(p) for head in heads for p in head.module.parameters()):
            raise ValueError(
                "TokenKDLoss: an output layer that is no plain nn.Linear cannot be fused while FSDP2 splits it; use "
                "fused=False, or DDP."
            )
        parameters = [p for p in ours.module.parameters() if p.requires_grad]
        called = CalledChunks(aim, (ours, theirs), parameters, chunk or 128, product_format(student))
        sums = cast(Any, _FusedCall).apply(called, memory, student, teacher, targets, *parameters)
    return cast("tuple[Tensor, Tensor]", sums)


class _FusedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, work: LinearChunks, memory: Memory, *tensors: Any) -> tuple[Tensor, Tensor]:
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
        check_differentiated_once("TokenKDLoss")
        if not ctx.saves:
            ctx.gradients = ctx.work.run(ctx.needs_input_grad[2:5], *ctx.saved_tensors)[1]
        return None, None, *scaled_gradients(ctx, upstream), None, None, None, None


class _FusedCall(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, work: CalledChunks, memory: Memory, *tensors: Any) -> tuple[Tensor, Tensor]:
        ctx.work, ctx.saves = work, memory == "save"
        wanted = [ctx.needs_input_grad[2], *ctx.needs_input_grad[5:]]
        total, gradients = work.run(wanted if ctx.saves else [False], *tensors[:3])
        ctx.gradients = gradients
        if not ctx.saves:
            ctx.save_for_backward(*tensors[:3])
        return _sums(ctx, total, work.aim)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor, _: Tensor) -> tuple[Any, ...]:
        check_differentiated_once("TokenKDLoss")
        work: CalledChunks = ctx.work
        if not ctx.saves:
            wanted = [ctx.needs_input_grad[2], *ctx.needs_input_grad[5:]]
            narrow = work.format.itemsize < 4
            with torch.autocast(upstream.device.type, work.format if narrow else torch.bfloat16, enabled=narrow):
                ctx.gradients = work.run(wanted, *ctx.saved_tensors)[1]
        of_hidden, *gradients = scaled_gradients(ctx, upstream)
        return None, None, of_hidden, None, None, *gradients


def _whole(parameter: Tensor | None) -> Tensor | None:
    return None if parameter is None else whole_parameter(parameter)


def _detached(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.detach()


def _sums(ctx: Any, total: Tensor, aim: Aim) -> tuple[Tensor, Tensor]:
    value = aim.factor * total[0] + aim.cross_entropy * total[1] if aim.cross_entropy else aim.factor * total[0]
    entropy = total[1].clone()
    ctx.mark_non_differentiable(entropy)
    return value, entropy


def scaled_gradients(ctx: Any, upstream: Tensor) -> Gradients:
    """Take the gradients out of a context, times the one that comes in: a loss scale, a weight, a denominator."""
    gradients: Gradients | None = ctx.gradients
    ctx.gradients = None
    if gradients is None:
        raise RuntimeError(
            "The gradient of a fused TokenKDLoss was used up by a backward pass; for a second one compute the loss "
            "again, or use fused=False."
        )
    return [None if one is None else one.mul_(upstream) for one in gradients]
