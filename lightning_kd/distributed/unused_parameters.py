"""Parameters that a step does not use: DDP waits for their gradients, and an optimizer must leave them alone."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from lightning_kd.distributed.whole_state import whole


def unused_by(loss: Tensor, parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    """Return the parameters that the gradient of a loss does not reach.

    Args:
        loss: A value with its graph.
        parameters: The parameters to look for; those that require no gradient are left out.

    Example:
        >>> used, idle = nn.Parameter(torch.ones(1)), nn.Parameter(torch.zeros(2))
        >>> unused_by(used.sum(), [used, idle])
        [Parameter containing:
        tensor([0., 0.], requires_grad=True)]
    """
    reached, seen = set(), set()
    waiting = [] if loss.grad_fn is None else [loss.grad_fn]
    while waiting:
        node = waiting.pop()
        variable = getattr(node, "variable", None)
        if variable is not None:
            reached.add(id(variable))
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                waiting.append(following)
    return [p for p in parameters if p.requires_grad and id(p) not in reached and p is not loss]


def keep_in_graph(loss: Tensor, parameters: Iterable[nn.Parameter]) -> Tensor:
    """Return the loss with parameters in its graph that do not change it, so that DDP does not wait for them."""
    for parameter in parameters:
        loss = loss + 0.0 * parameter.sum()
    return loss


def zero_gradients(parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    """Return the parameters whose gradient is zero, as a compiled or sharded network gives those that are not reached.

    Every process must call this if they are split.

    Args:
        parameters: The parameters to look through; those without a gradient are left out.

    Example:
        >>> moved, idle = nn.Parameter(torch.ones(1)), nn.Parameter(torch.zeros(2))
        >>> (moved + 0.0 * idle.sum()).sum().backward()
        >>> zero_gradients([moved, idle])
        [Parameter containing:
        tensor([0., 0.], requires_grad=True)]
    """
    found = [(parameter, parameter.grad.any()) for parameter in parameters if parameter.grad is not None]
    moves = [moves for _, moves in found]
    split = any(isinstance(one, DTensor) for one in moves)
    moved = [bool(whole(one)) for one in moves] if split else torch.stack(moves).tolist() if moves else []
    return [parameter for (parameter, _), has_moved in zip(found, moved, strict=True) if not has_moved]
