"""Networks that torch has traced or exported: a graph of operations, in which few layers of the source still run."""

from torch import nn
from torch.fx import GraphModule, Node

from lightning_kd.capture.networks import original


def stands_for(network: nn.Module, layer: str) -> str | None:
    """Return the part that is called once, with what a layer of the source returned, or that returned it.

    Quantisers put such a part behind the layers whose outputs they quantise; torchao may have one at several places.

    Args:
        network: The network; one that is not traced has no such part.
        layer: Name of the layer in the source.

    Example:
        >>> import torch
        >>> class Net(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.stage = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
        ...     def forward(self, x):
        ...         return self.stage(x)
        >>> stands_for(torch.fx.symbolic_trace(Net()), "stage")
        'stage.1'
    """
    traced, last = original(network), None
    if not isinstance(traced, GraphModule):
        return None
    for node in traced.graph.nodes:
        stack = node.meta.get("nn_module_stack") or {}
        if node.op.startswith("call_") and any(path == layer for path, _ in stack.values()):
            last = node
    calls = [node for node in traced.graph.nodes if node.op == "call_module"]
    parts = [traced.get_submodule(str(node.target)) for node in calls]
    nodes: list[Node] = [] if last is None else [*last.users, last]
    once = (node for node in nodes if node in calls and parts.count(parts[calls.index(node)]) == 1)
    return next((str(node.target) for node in once), None)
