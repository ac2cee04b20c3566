"""Collect a batch from all processes, for losses that compare samples with one another."""

from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable


def is_distributed() -> bool:
    """Whether several processes train together."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def gather(tensor: Tensor) -> Tensor:
    """Return the samples of all processes in the order of the processes; gradients reach this process's samples only.

    Every process then computes the same loss of the whole batch. DDP averages the gradients over the processes, so
    the gradient of this process's samples is multiplied by the number of processes; the average is then the gradient
    of one process with the whole batch. Processes may hold different numbers of samples. Each process sends its samples
    once, padded to the largest number, and that number in 8 bytes; the backward pass sends nothing.

    Args:
        tensor: Samples along the first axis; the other axes are equal in all processes.
    """
    if not is_distributed():
        return tensor
    gathered: Tensor = cast(Any, _Gather).apply(tensor)
    return gathered


def pad_to_longest(tensor: Tensor) -> Tensor:
    """Append zeros along axis 1 until the tensor is as long there as that of the process with the longest.

    Args:
        tensor: Features with positions on axis 1, (B, N, ...); others are returned as they are.
    """
    if not is_distributed() or tensor.ndim < 3:
        return tensor
    longest = torch.tensor(tensor.shape[1], device=tensor.device)
    dist.all_reduce(longest, dist.ReduceOp.MAX)
    missing = int(longest) - tensor.shape[1]
    return torch.cat([tensor, tensor.new_zeros(len(tensor), missing, *tensor.shape[2:])], dim=1) if missing else tensor


def default_store() -> Any:
    """Return the store by which the processes of a run found each other.

    torch 2.10 to 2.14 have no public name for it, and a store is the only way to wait for one process alone.
    """
    return dist.distributed_c10d._get_default_store()


def mean_over_processes(tensor: Tensor) -> Tensor:
    """Return the mean of a tensor without gradient over all processes."""
    if not is_distributed():
        return tensor
    total = tensor.clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()


def share_of_all(mean: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    r"""Turn this process's mean over what it counts into its share of the mean over what all processes count.

    .. math::
        L_p = \frac{W}{\sum_q N_q} N_p \bar L_p

    for process :math:`p` of :math:`W`, with :math:`N_p` labels or tokens and the mean :math:`\bar L_p` over these. DDP
    averages the gradients over the processes, which gives the gradient of the mean over all. Each process must call
    this once in a step, also with an empty batch.

    Args:
        mean: Mean over what this process counts, 0 without any.
        count: How many these are.

    Returns:
        The share, and how many these are on average over the processes.
    """
    if not is_distributed():
        return mean, count
    average = mean_over_processes(count.to(torch.promote_types(mean.dtype, torch.float32)))
    return mean * (count / torch.where(average > 0, average, 1.0)).to(mean.dtype), average


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        sizes = [torch.zeros((), dtype=torch.long, device=tensor.device) for _ in range(dist.get_world_size())]
        dist.all_gather(sizes, torch.tensor(len(tensor), device=tensor.device))
        lengths = [int(size) for size in sizes]
        longest = max(lengths)
        padded = tensor.new_zeros(longest, *tensor.shape[1:])
        padded[: len(tensor)] = tensor
        parts = [torch.empty_like(padded) for _ in lengths]
        dist.all_gather(parts, padded)
        ctx.start, ctx.length = sum(lengths[: dist.get_rank()]), len(tensor)
        return torch.cat([part[:length] for part, length in zip(parts, lengths, strict=True)])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad[ctx.start : ctx.start + ctx.length] * dist.get_world_size()
