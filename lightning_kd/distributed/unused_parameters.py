"""Unused parameters of a step: DDP waits for their gradients, and the optimizer must not change them."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from lightning_kd.distributed.gather import is_distributed
from lightning_kd.distributed.sharding import reach
from lightning_kd.distributed.whole_state import whole


class UnusedParameters:
    """Finds in each step the parameters that the loss does not use, so that nobody waits for them or changes them.

    DDP waits for the gradient of every parameter, so unused ones are kept in the graph with a factor of 0. They then
    have a gradient of zero, which an optimizer would still decay or move by its momentum, so that it is taken away.

    ============================  =================================  =================================================
    strategy                      in the graph                       gradient taken away
    ============================  =================================  =================================================
    one process, eager            nothing: torch gives no gradient   nothing
    DDP                           the unused ones of this process    the same ones
    DDP, a batch without samples  all that this process leaves out   those of them whose averaged gradient is zero
    FSDP2                         every output of the student        those whose gradient is zero
    compiled                      as without ``torch.compile``       those whose gradient is zero: torch 2.10 to 2.14
                                                                     give unused parameters one
    a first stage                 as in the main training            those whose gradient is zero
    ============================  =================================  =================================================

    Which parameters are unused is found by walking through the graph of the loss, once if nothing can change it.
    """

    def __init__(self) -> None:
        self.sharded = False
        """Whether FSDP2 has split the student."""
        self._may_change = False
        self._zero_may_mean_unused = False
        self._unused: list[nn.Parameter] = []
        self._used_elsewhere_or_not: list[nn.Parameter] = []

    def begin(self) -> None:
        """Look for unused parameters in the first step of a fit."""
        self._may_change = True

    def start(self, *, compiled: bool) -> None:
        """Begin the training itself."""
        self._zero_may_mean_unused = self.sharded or compiled

    def keep(self, total: Tensor, module: nn.Module, outputs: Sequence[object], *, empty: bool, varies: bool) -> Tensor:
        """Return the loss of a step, with what it does not use in its graph where a strategy needs that.

        Args:
            total: The loss.
            module: The module that trains.
            outputs: What the student returned in this step.
            empty: Whether this process has a batch without samples.
            varies: Whether another step may use other parameters.
        """
        if self.sharded:
            return reach(total, outputs)
        if not (self._may_change or empty) or not is_distributed():
            return total
        unused = unused_by(total, module.parameters())
        if empty:  # the other processes may use them: the averaged gradient shows whether they do
            self._unused, self._used_elsewhere_or_not = [], unused if self._may_change else []
        else:
            self._unused, self._used_elsewhere_or_not = unused, []
            self._may_change = varies or bool(unused)
        return keep_in_graph(total, unused)

    def before_optimizer_step(self, module: nn.Module, *, in_stage: bool) -> None:
        """Take the gradient of unused parameters away."""
        unused = self._unused
        if in_stage or self._zero_may_mean_unused:
            unused = [*unused, *zero_gradients(module.parameters())]
        elif self._used_elsewhere_or_not:
            unused = zero_gradients(self._used_elsewhere_or_not)
        if not in_stage:
            self._zero_may_mean_unused = self._zero_may_mean_unused and bool(unused)
        for parameter in unused:
            parameter.grad = None


def unused_by(loss: Tensor, parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    """Return the parameters that the gradient of a loss does not reach.

    Args:
        loss: A value with its graph.
        parameters: The parameters to look for; those that require no gradient are left out.

    Example:
        >>> used, unused = nn.Parameter(torch.ones(1)), nn.Parameter(torch.zeros(2))
        >>> unused_by(used.sum(), [used, unused])
        [Parameter containing:
        tensor([0., 0.], requires_grad=True)]
    """
    reached, seen = set(), set()
    waiting = [] if loss.grad_fn is None else [loss.grad_fn]
    while waiting:
        node = waiting.pop()
        parameter = getattr(node, "variable", None)  # only the nodes that accumulate a leaf's gradient have it
        if parameter is not None:
            reached.add(id(parameter))
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                waiting.append(following)
    return [p for p in parameters if p.requires_grad and id(p) not in reached and p is not loss]


def keep_in_graph(loss: Tensor, parameters: Iterable[nn.Parameter]) -> Tensor:
    """Return the loss, its value unchanged, with parameters in its graph: DDP gets a gradient of zero for each."""
    for parameter in parameters:
        loss = loss + 0.0 * parameter.sum()
    return loss


def zero_gradients(parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    """Return the parameters whose gradient is zero everywhere.

    A compiled network, and one that FSDP2 shards, give an unused parameter a gradient of zero in place of none. Whether
    a sharded gradient is zero is known when every process has called this.

    Args:
        parameters: The parameters to look through; those without a gradient are left out.

    Example:
        >>> used, unused = nn.Parameter(torch.ones(1)), nn.Parameter(torch.zeros(2))
        >>> (used + 0.0 * unused.sum()).sum().backward()
        >>> zero_gradients([used, unused])
        [Parameter containing:
        tensor([0., 0.], requires_grad=True)]
    """
    with_gradient, flags = [], []
    for parameter in parameters:
        if parameter.grad is not None:
            with_gradient.append(parameter)
            flags.append(parameter.grad.any())
    if any(isinstance(flag, DTensor) for flag in flags):
        nonzero = [bool(whole(flag)) for flag in flags]
    else:  # one transfer from the device for all flags
        nonzero = torch.stack(flags).tolist() if flags else []
    return [parameter for parameter, is_nonzero in zip(with_gradient, nonzero, strict=True) if not is_nonzero]
