"""A parameter that FSDP2 has split, put together for a step, with a gradient that finds its way back."""

from torch import Tensor
from torch.distributed.tensor import DTensor, Partial


def is_split(parameter: Tensor | None) -> bool:
    """Whether a parameter is split over processes."""
    return isinstance(parameter, DTensor)


def whole_parameter(parameter: Tensor) -> Tensor:
    """Return a parameter put together, any other as it is; every process must call this.

    The gradients of the processes are averaged, as FSDP2 does with those of parameters that it gathers itself. It
    gathers them for the call of their module only, and this is for what is computed after it.

    Args:
        parameter: The parameter.
    """
    if not isinstance(parameter, DTensor):
        return parameter
    if not parameter.requires_grad:
        return parameter.full_tensor()
    processes = parameter.device_mesh.size()
    whole: Tensor = parameter.full_tensor(grad_placements=[Partial()] * parameter.device_mesh.ndim)
    whole.register_hook(lambda gradient: gradient / processes)
    return whole
