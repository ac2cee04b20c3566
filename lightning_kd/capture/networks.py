"""Questions to a network that need no call of it, and calls of it that leave modes and random states alone."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn

from lightning_kd.capture.private import ORIGINAL, is_compiled_in_place, tree_map_only


def original(module: nn.Module) -> nn.Module:
    """Return the module that ``torch.compile(module)`` was given, or the module itself."""
    inner = getattr(module, ORIGINAL, module)
    assert isinstance(inner, nn.Module)
    return inner


def plain_name(key: str) -> str:
    """Return the name that a weight of a compiled module has in the plain one."""
    return key.replace(f"{ORIGINAL}.", "")


def is_compiled(module: nn.Module) -> bool:
    """Whether the module or a part of it was compiled, by ``torch.compile(module)`` or ``module.compile()``."""
    return any(part is not original(part) or is_compiled_in_place(part) for part in module.modules())


def copied(network: nn.Module, kept: dict[int, Any] | None = None) -> nn.Module:
    """Copy a network, with what switches the mode of one that was exported, which torch's own copy forgets.

    Args:
        network: The network.
        kept: What stands in the copy for objects by their id, as in ``copy.deepcopy``.
    """
    other = copy.deepcopy(network, kept)
    parts = dict(network.named_modules())
    for path, part in other.named_modules():
        for name, switch in vars(parts[path]).items() if path in parts else ():
            if name in ("train", "eval") and isinstance(switch, MethodType) and name not in vars(part):
                setattr(part, name, MethodType(switch.__func__, part))
    return other


def first_tensor(output: object) -> Tensor | None:
    """Return the tensor that stands for a layer's output: itself, or the first element of a tuple or list."""
    if isinstance(output, Tensor):
        return output
    inner = output[0] if isinstance(output, Sequence) and not isinstance(output, str) and output else None
    return inner if isinstance(inner, Tensor) else None


def device_of(module: nn.Module) -> torch.device:
    """Return the device of a module's first parameter, the CPU if it has none."""
    tensor = next(module.parameters(), None)
    return torch.device("cpu") if tensor is None else tensor.device


def num_parameters(module: nn.Module) -> int:
    """Return the number of a module's parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


@contextmanager
def isolated_random_state() -> Iterator[None]:
    """Restore the random states of torch, Python and NumPy after the block, also if it raises.

    Lightning 2.6's ``isolate_rng`` does not restore them if the block raises. So it ends before the error goes on.
    """
    failure = None
    with isolate_rng():
        try:
            yield
        except BaseException as error:
            failure = error
    if failure is not None:
        raise failure


@contextmanager
def undisturbed(module: nn.Module) -> Iterator[None]:
    """Run the block eagerly, in eval mode, without gradients; restore every mode and random state after it."""
    modes = modes_of(module)
    module.eval()
    try:
        with isolated_random_state(), torch.no_grad(), torch.compiler.set_stance("force_eager"):
            yield
    finally:
        put_in_modes(modes)


def modes_of(module: nn.Module) -> dict[nn.Module, bool]:
    """Return each part with whether it is in training mode, outer parts first."""
    return {part: part.training for part in module.modules()}


def put_in_modes(modes: Mapping[nn.Module, bool]) -> None:
    """Put each part in its mode, and tell the mode to those that do more than note it.

    Adapters merge their weights in eval mode, and torchao rewrites the graph of an exported network. The flag alone
    would leave them so in training.

    Args:
        modes: Parts and their modes, outer parts first.

    Example:
        >>> net = nn.Sequential(nn.Dropout(), nn.Dropout().eval())
        >>> modes = modes_of(net)
        >>> put_in_modes(dict.fromkeys(net.modules(), False)), put_in_modes(modes)
        (None, None)
        >>> [part.training for part in net]
        [True, False]
    """
    for part, mode in modes.items():
        if _acts_on_its_mode(part):
            part.train(mode)
    for part, mode in modes.items():  # what was told also reached the parts inside
        part.training = mode


def _acts_on_its_mode(part: nn.Module) -> bool:
    """Whether the class or, as for networks that torch has exported, the object itself has a ``train`` of its own."""
    return "train" in vars(part) or type(part).train is not nn.Module.train


@contextmanager
def taking_any_device(module: nn.Module) -> Iterator[None]:
    """Move the inputs of a module to its own device, so that it can be called for its shapes alone.

    A module on the meta device then takes real inputs. A real module takes the output of one on the meta device, as
    zeros.
    """

    def bring(_: nn.Module, args: Any, kwargs: Any) -> Any:
        device = device_of(module)
        return tree_map_only(
            Tensor,
            lambda t: torch.zeros_like(t, device=device) if t.is_meta and device.type != "meta" else t.to(device),
            (args, kwargs),
        )

    handle = module.register_forward_pre_hook(bring, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
