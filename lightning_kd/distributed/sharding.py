"""FSDP2: how student, teacher and losses are split over the processes, and when."""

from typing import Any, cast

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from lightning_kd.capture.networks import original
from lightning_kd.capture.private import is_one_graph, tree_leaves


def shard(module: nn.Module, mesh: DeviceMesh, *, reshard_after_forward: bool | None = None, **options: Any) -> None:
    """Split a network's parameters over processes by FSDP2, block by block.

    Blocks are the network's children and the elements of its lists of layers; a block that shares parameters with the
    rest of the network stays with the rest. Each process then holds its part of every parameter, and one whole block at
    a time while it computes. A network whose blocks are used otherwise than by calling them needs its own sharding.

    Args:
        module: The network, compiled or not.
        mesh: The data-parallel processes, one dimension.
        reshard_after_forward: Whether the network's own parameters, beside its blocks', are split again after the
            forward pass; by default not, because the backward pass begins with them. A frozen network has no backward
            pass: pass ``True``.
        options: Further arguments of ``torch.distributed.fsdp.fully_shard``, such as ``offload_policy``.
    """
    network = original(module)
    if isinstance(network, FSDPModule):
        return
    for block in blocks(network):
        fully_shard(block, mesh=mesh, **options)
    fully_shard(network, mesh=mesh, reshard_after_forward=reshard_after_forward, **options)


def blocks(network: nn.Module) -> list[nn.Module]:
    """Return the parts of a network that are sharded as wholes, inner ones first.

    Args:
        network: Any module.

    Example:
        >>> network = nn.Module()
        >>> network.stem, network.layers = nn.Linear(2, 2), nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
        >>> [list(network.modules()).index(block) for block in blocks(network)]
        [4, 3, 1]
    """
    lists = [part for part in network.modules() if isinstance(part, nn.ModuleList)]
    candidates = [*network.children(), *(element for layers in lists for element in layers)]
    found = dict.fromkeys(part for part in network.modules() if any(part is candidate for candidate in candidates))
    return [block for block in reversed(found) if _can_stand_alone(block, network)]


def mesh_of(trainer: Trainer) -> DeviceMesh | None:
    """Return the data-parallel processes of a ``ModelParallelStrategy``, ``None`` under any other strategy.

    Raises:
        MisconfigurationException: If the strategy splits tensors but not the data.
    """
    strategy = trainer.strategy
    if not isinstance(strategy, ModelParallelStrategy):
        return None
    mesh: DeviceMesh = strategy.device_mesh["data_parallel"]
    if mesh.size() == 1 < strategy.device_mesh.size():
        raise MisconfigurationException(
            "ModelParallelStrategy uses all devices for tensor parallelism by default, which distillation does not "
            f"support; pass ModelParallelStrategy(data_parallel_size={strategy.device_mesh.size()}, "
            "tensor_parallel_size=1)."
        )
    return mesh


def check_not_one_graph(network: nn.Module, role: str) -> None:
    """Raise a ``MisconfigurationException`` with the remedy if a network is compiled as one graph, which FSDP2 breaks.

    Args:
        network: The network that is split.
        role: ``"student"`` or ``"teacher"``.
    """
    if is_one_graph(network):
        raise MisconfigurationException(
            f"The {role} is compiled with fullgraph=True, but ModelParallelStrategy puts its blocks together one by "
            f"one while it runs, which is not one graph. Compile the blocks: for block in {role}.children(): "
            "block.compile(fullgraph=True). Or leave fullgraph=True out."
        )


def check_clips(trainer: Trainer) -> None:
    """Raise a ``MisconfigurationException`` with the remedy if the strategy would refuse to clip at the first step."""
    by_norm = trainer.gradient_clip_val and trainer.gradient_clip_algorithm in (None, "norm")
    if isinstance(trainer.strategy, FSDPStrategy) and by_norm:
        raise MisconfigurationException(
            "FSDPStrategy cannot clip gradients by their norm. Use ModelParallelStrategy, which can, or "
            "Trainer(gradient_clip_algorithm='value')."
        )


def reach(total: Tensor, output: object) -> Tensor:
    """Return the loss, its value unchanged, with a network's outputs in its graph.

    FSDP2 gathers a block for the backward pass when the gradient of the block's output arrives. The gradient of a loss
    that reads an inner layer alone starts inside a block, which would not be gathered. A zero gradient of the output
    gathers it.

    Args:
        total: The loss.
        output: What the network returned.
    """
    outputs = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor) and leaf.requires_grad]
    return cast(Tensor, _Reach.apply(total, *outputs))  # type: ignore[no-untyped-call]


class _Reach(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, total: Tensor, *outputs: Tensor) -> Tensor:
        ctx.save_for_backward(*outputs)
        return total.view_as(total)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        return grad, *(torch.zeros_like(output) for output in ctx.saved_tensors)


def _can_stand_alone(block: nn.Module, network: nn.Module) -> bool:
    if isinstance(block, nn.ModuleList | nn.ModuleDict):
        return False
    inside = {id(parameter) for parameter in block.parameters()}
    within = {id(part) for part in block.modules()}
    outside = {
        id(parameter)
        for part in network.modules()
        if id(part) not in within
        for parameter in part.parameters(recurse=False)
    }
    return bool(inside) and not inside & outside
