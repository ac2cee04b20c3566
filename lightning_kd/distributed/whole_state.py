"""Whole weights out of a module that FSDP2 has split over processes, and back into it."""

from collections.abc import Mapping
from typing import cast

from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor


def is_sharded(module: nn.Module) -> bool:
    """Whether a part of a module was split by FSDP2."""
    return any(isinstance(part, FSDPModule) for part in module.modules())


def on_meta(module: nn.Module) -> bool:
    """Whether a part of a module was built on the meta device and has no weights yet."""
    return any(tensor.is_meta for tensor in (*module.parameters(), *module.buffers()))


def whole_state(module: nn.Module) -> dict[str, Tensor]:
    """Return a module's state dict with every split tensor put together; every process must call this.

    Args:
        module: The module, sharded or not.

    Returns:
        The state dict; of a sharded module on the CPU, and empty in all processes but the first.
    """
    if not is_sharded(module):
        return module.state_dict()
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    return cast("dict[str, Tensor]", get_model_state_dict(module, options=options))


def load_whole(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load a whole state dict, strictly, into a module that may be sharded; every process must call this with it."""
    if not is_sharded(module):
        module.load_state_dict(state)
        return
    set_model_state_dict(module, dict(state), options=StateDictOptions(full_state_dict=True))


def whole(tensor: Tensor) -> Tensor:
    """Return a split tensor put together on the CPU, any other as it is; every process must call this."""
    return tensor.full_tensor().cpu() if isinstance(tensor, DTensor) else tensor


def placed_like(value: Tensor, target: Tensor) -> Tensor:
    """Return a whole tensor on the device of the target, split as the target is; nothing is sent."""
    if not isinstance(target, DTensor):
        return value.to(target.device)
    local = value.to(target.to_local().device)
    return distribute_tensor(local, target.device_mesh, target.placements, src_data_rank=None)
