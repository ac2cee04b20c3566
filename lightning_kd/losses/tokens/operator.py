"""The fused loss of tokens as one operator, for compiled graphs.

A compiler cannot look into a loop over as many tokens as a batch happens to have. As an operator of its own, the loss
is one node of a graph.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from lightning_kd.losses.tokens.chunks import LinearChunks, product_format, tokens_at_a_time
from lightning_kd.losses.tokens.heads import Aim, Head, Tail
from lightning_kd.losses.tokens.selection import choose


@torch.library.custom_op("lightning_kd::fused_tokens", mutates_args=())
def _operator(
    student: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    teacher: Tensor,
    teacher_weight: Tensor,
    teacher_bias: Tensor | None,
    labels: Tensor | None,
    counts: Tensor | None,
    last_bias: Tensor | None,
    teacher_last_bias: Tensor | None,
    divergence: str,
    settings: Sequence[float],
    scales: Sequence[float],
    caps: Sequence[float],
    wanted: Sequence[bool],
    chunk: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    aim = Aim(divergence, *settings)
    ours, theirs = (
        Tail(scale, cap or None, last)
        for scale, cap, last in zip(scales, caps, (last_bias, teacher_last_bias), strict=True)
    )
    rows = choose(student, counts)
    work = LinearChunks(aim, (ours, theirs), chunk or tokens_at_a_time(rows, weight), product_format(rows))
    targets = None if labels is None else choose(labels, counts, axes=0).long()
    total, found = work.run(wanted, rows, weight, bias, choose(teacher, counts), teacher_weight, teacher_bias, targets)
    of_hidden = student.new_zeros(student.shape if wanted[0] else 0)
    if found[0] is not None:
        flat = of_hidden.view(-1, student.shape[-1])
        if counts is None:
            flat.copy_(found[0])
        else:
            flat[counts.flatten()] = found[0].to(flat.dtype)
    of_weight, of_bias = (student.new_zeros(0) if one is None else one for one in found[1:])
    value = aim.factor * total[0] + aim.cross_entropy * total[1]
    return value, total[1].clone(), of_hidden, of_weight, of_bias


@_operator.register_fake
def _sizes(
    student: Tensor, weight: Tensor, bias: Tensor | None, *others: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    wanted = others[-2]
    wide = torch.promote_types(product_format(student), torch.float32)
    value = student.new_empty((), dtype=wide)
    of_hidden = torch.empty_like(student, memory_format=torch.contiguous_format) if wanted[0] else student.new_empty(0)
    of_weight = weight.new_empty(weight.shape, dtype=wide) if wanted[1] else student.new_empty(0)
    of_bias = bias.new_empty(bias.shape, dtype=wide) if wanted[2] and bias is not None else student.new_empty(0)
    return value, torch.empty_like(value), of_hidden, of_weight, of_bias


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.wanted, ctx.formats = inputs[14], [inputs[i].dtype if inputs[i] is not None else None for i in range(3)]
    ctx.save_for_backward(*output[2:])


def _scale(ctx: Any, upstream: Tensor, *_: Tensor | None) -> tuple[Any, ...]:
    slopes = [
        (one * upstream).to(kind) if wanted and kind is not None else None
        for one, wanted, kind in zip(ctx.saved_tensors, ctx.wanted, ctx.formats, strict=True)
    ]
    return *slopes, *[None] * 13


_operator.register_autograd(_scale, setup_context=_keep)


def in_one_graph(
    student: Tensor,
    teacher: Tensor,
    heads: tuple[Head, Head],
    aim: Aim,
    counts: Tensor | None,
    labels: Tensor | None,
    chunk: int,
) -> tuple[Tensor, Tensor]:
    """Return what ``fused_sum`` does, as one operator; its gradients are computed together with the value."""
    ours, theirs = (cast(nn.Linear, head.module) for head in heads)
    tails = [head.tail for head in heads]
    wanted = [student.requires_grad, ours.weight.requires_grad, ours.bias is not None and ours.bias.requires_grad]
    settings = [aim.alpha, aim.beta, aim.ratio, aim.temperature, aim.factor, aim.cross_entropy]
    value, entropy, *_ = _operator(
        student,
        ours.weight,
        ours.bias,
        teacher,
        theirs.weight.detach(),
        None if theirs.bias is None else theirs.bias.detach(),
        labels,
        counts,
        tails[0].bias,
        tails[1].bias,
        aim.divergence,
        settings,
        [tail.scale for tail in tails],
        [tail.cap or 0.0 for tail in tails],
        wanted if torch.is_grad_enabled() else [False] * 3,
        chunk,
    )
    return value, entropy.detach()
