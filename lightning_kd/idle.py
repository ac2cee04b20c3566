"""Parameters that a step does not use: DDP waits for their gradients, and an optimizer must leave them alone."""

from collections.abc import Iterable

from torch import Tensor, nn


def unreached(loss: Tensor, parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    """Return the parameters that the gradient of a loss does not reach.

    Args:
        loss: A value with its graph.
        parameters: The parameters to look for; those that require no gradient are left out.

    Example:
        >>> import torch
        >>> used, idle = nn.Parameter(torch.ones(1)), nn.Parameter(torch.zeros(2))
        >>> unreached(used.sum(), [used, idle])
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


def touch(loss: Tensor, parameters: Iterable[nn.Parameter]) -> Tensor:
    """Return the loss with parameters in its graph that do not change it, so that DDP does not wait for them."""
    for parameter in parameters:
        loss = loss + 0.0 * parameter.sum()
    return loss
