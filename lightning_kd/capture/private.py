"""Private names of torch and transformers that the other files need: look here when a new version breaks something.

Each has its reason. torch 2.10 to 2.14 and transformers 5.24 have no public name for any of them.
"""

import copy
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch._C import DisableTorchFunction as DisableTorchFunction
from torch.utils._python_dispatch import TorchDispatchMode as TorchDispatchMode
from torch.utils._python_dispatch import is_traceable_wrapper_subclass as is_traceable_wrapper_subclass
from torch.utils._pytree import tree_flatten_with_path as tree_flatten_with_path
from torch.utils._pytree import tree_leaves as tree_leaves
from torch.utils._pytree import tree_map as tree_map
from torch.utils._pytree import tree_map_only as tree_map_only
from torch.utils._pytree import tree_unflatten as tree_unflatten

BatchNorm = nn.modules.batchnorm._BatchNorm
"""The base class of all BatchNorm layers."""
Conv = nn.modules.conv._ConvNd
"""The base class of all convolutions, transposed ones too."""
InstanceNorm = nn.modules.instancenorm._InstanceNorm
"""The base class of all InstanceNorm layers."""
Pool = (
    nn.modules.pooling._AvgPoolNd,
    nn.modules.pooling._MaxPoolNd,
    nn.modules.pooling._AdaptiveAvgPoolNd,
    nn.modules.pooling._AdaptiveMaxPoolNd,
    nn.modules.pooling._LPPoolNd,
)
"""The base classes of all layers that pool over positions."""
AdaptivePool = (nn.modules.pooling._AdaptiveAvgPoolNd, nn.modules.pooling._AdaptiveMaxPoolNd)
"""Those that pool to a size of their own, as heads do."""
ORIGINAL = "_orig_mod"
"""The attribute under which ``torch.compile(module)`` keeps the module; it is a part of the keys of a state dict."""
UNKNOWN = -1
"""The version of a tensor that counts no changes: in compiled code, and in inference mode."""


def version_of(tensor: Tensor) -> int:
    """Return how often a tensor has been changed in place, ``UNKNOWN`` where tensors keep no count.

    Autograd counts in ``_version``. Only this count shows that a value which a loss reads later is another one by then.
    """
    return UNKNOWN if torch.compiler.is_compiling() or tensor.is_inference() else tensor._version


def names_of_any_size(module: nn.Module) -> set[str]:
    """Return the buffers that parts of other packages load by a ``_load_from_state_dict`` of their own.

    Observers of torch.ao and torchao take a checkpoint's sizes so. Torch's own layers, and ours, take their own only.
    """
    return {
        f"{name}.{buffer}" if name else buffer
        for name, part in module.named_modules()
        if type(part)._load_from_state_dict is not nn.Module._load_from_state_dict
        if not type(part).__module__.startswith(("torch.nn.", "lightning_kd."))
        for buffer, _ in part.named_buffers(recurse=False)
    }


def has_hooks(module: nn.Module) -> bool:
    """Whether hooks run when a module is called, of its forward or of its backward pass."""
    hooks = (module._forward_pre_hooks, module._forward_hooks, module._backward_pre_hooks, module._backward_hooks)
    return any(hooks)


def is_compiled_in_place(module: nn.Module) -> bool:
    """Whether ``module.compile()`` was called, which leaves a trace in ``_compiled_call_impl`` only."""
    return module._compiled_call_impl is not None


def is_one_graph(module: nn.Module) -> bool:
    """Whether a module was compiled with ``fullgraph=True``.

    ``torch.compile(module)`` keeps its context as ``dynamo_ctx``. ``module.compile()`` keeps it in the closure of
    ``_compiled_call_impl`` only.
    """
    contexts = [getattr(module, "dynamo_ctx", None)]
    if module._compiled_call_impl is not None:
        contexts.append(inspect.getclosurevars(module._compiled_call_impl).nonlocals.get("self"))
    return any(getattr(context, "fullgraph", False) for context in contexts)


def has_forward_hook(module: nn.Module, condition: Callable[[object], bool]) -> bool:
    """Whether a module has a hook, called after its forward pass, that satisfies a condition."""
    return any(map(condition, module._forward_hooks.values()))


def remove_forward_hooks(module: nn.Module, condition: Callable[[object], bool]) -> None:
    """Remove the forward hooks of a module that satisfy a condition.

    A handle removes its hook from one module only. The copy of a module has copies of the hooks, but no handles.
    """
    for hooks in (module._forward_hooks, module._forward_pre_hooks):
        for key in [key for key, hook in hooks.items() if condition(hook)]:
            for table in (hooks, module._forward_hooks_with_kwargs, module._forward_pre_hooks_with_kwargs):
                table.pop(key, None)


def is_writing(operation: Any) -> bool:
    """Whether an operation that a ``TorchDispatchMode`` is given writes to one of its inputs.

    Its schema says so, but for batch normalisation: torch 2.14 does not declare that it writes its statistics.
    """
    schema = operation._schema
    return bool(schema.is_mutable) or "batch_norm" in schema.name


def replace_tensors(module: nn.Module, function: Callable[[Tensor], Tensor]) -> None:
    """Replace every parameter and buffer of a module by what a function makes of it.

    ``module.to()`` does so by ``_apply``. Its public relatives take a device or a format, not a function.
    """
    module._apply(function)


def attention_backend(config: object) -> str | None:
    """Return the name by which a configuration of transformers calls the attention, ``None`` if it has none.

    transformers 5.24 has it in ``config._attn_implementation``; ``None`` there means ``"eager"``.
    """
    return None if not hasattr(config, "_attn_implementation") else config._attn_implementation or "eager"


def with_attention_backend(config: Any, name: str) -> Any:
    """Return a copy of a configuration with another name of the attention.

    Its own setter would change the parts of the configuration too, which the copy shares.
    """
    copied = copy.copy(config)
    copied._attn_implementation_internal = name
    return copied
