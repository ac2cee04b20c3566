"""Named layers -> tensors: forward hooks that record the first value of each in a step."""

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


@dataclass(slots=True)
class Record:
    """What one recorded step held: the first call of the module, and the first value of each named layer."""

    called: bool = False
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    output: Any = None
    features: dict[str, Tensor] = field(default_factory=dict)


class Capture:
    """Records the first call of a module in a step and what named layers return, by forward hooks.

    The hooks survive copying and ``torch.compile(fullgraph=True)``. Values are recorded between :meth:`start` and
    :meth:`stop` only, the first one of each layer (activation checkpointing runs a layer again in the backward
    pass), and dropped when the step ends. A layer that returns a tuple or list counts with its first element.

    Args:
        module: The module that is read; a compiled one is read through to the original.
        layers: Dotted names as in ``module.named_modules()``.
        role: ``"student"`` or ``"teacher"``, used in messages.
        with_call: Whether to record the module's own call besides its layers.

    Raises:
        ValueError: If there is no layer of that name; the message shows the nearest names.

    Example:
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU())
        >>> capture = Capture(net, ["1"], role="student")
        >>> capture.attach()
        >>> with capture.recording() as record:
        ...     output = net(torch.ones(2, 2, 2))
        ...     record.features["1"].shape, record.output is output
        (torch.Size([2, 3]), True)
        >>> capture.detach()
    """

    def __init__(self, module: nn.Module, layers: Iterable[str], role: str, *, with_call: bool = True) -> None:
        self.module = module
        self.with_call = with_call
        self.layers = tuple(dict.fromkeys(layers))
        self.role = role
        self._store = _Store()
        self._handles: list[RemovableHandle] = []
        self.attached = False
        inner = original(module)
        names = [name for name, _ in inner.named_modules() if name]
        for layer in self.layers:
            if layer not in names:
                raise ValueError(_unknown_layer(layer, names, role, type(inner).__name__))

    def attach(self) -> None:
        """Put the hooks on; a second call changes nothing.

        A graph that was compiled before its module had hooks runs without them, so compiled code is dropped here
        and made again at the next call.
        """
        if self.attached:
            return
        self.attached = True
        if self.with_call:
            self._attach_call()
        for layer in self.layers:
            put = partial(_put_layer, self._store, layer)
            self._handles.append(original(self.module).get_submodule(layer).register_forward_hook(put))
        if self._handles and is_compiled(self.module):
            torch.compiler.reset()

    def _attach_call(self) -> None:
        # a module compiled in place runs its own hooks beside its graph, each compiled alone: that one need not be
        in_place = self.module._compiled_call_impl is not None
        put_call = partial(torch.compiler.disable(_put_call) if in_place else _put_call, self._store)
        self._handles.append(self.module.register_forward_hook(put_call, with_kwargs=True))

    def detach(self) -> None:
        """Take the hooks off and leave the module as it was."""
        self.stop()
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self.attached = False

    def start(self) -> Record:
        """Begin a step with an empty record, which fills as the module and its layers run."""
        self._store.record = Record()
        self._store.active = True
        return self._store.record

    def stop(self) -> None:
        """End the step and let go of what was recorded."""
        self._store.active = False
        self._store.record = Record()

    def recording(self) -> "Recording":
        """Record inside the block."""
        return Recording(self)

    def check_complete(self, record: Record) -> None:
        """Raise a ``RuntimeError`` that names the layers which did not run in the recorded step."""
        missing = [layer for layer in self.layers if layer not in record.features]
        if missing:
            raise RuntimeError(
                f"The {self.role} layer(s) {missing} did not run in this step. Name layers that every forward pass "
                "calls."
            )


class Recording:
    """A block in which a :class:`Capture` records; a generator would cost several times as much a step."""

    def __init__(self, capture: Capture) -> None:
        self.capture = capture

    def __enter__(self) -> Record:
        return self.capture.start()

    def __exit__(self, *_: object) -> None:
        self.capture.stop()


def original(module: nn.Module) -> nn.Module:
    """Return the module that ``torch.compile(module)`` was given, or the module itself."""
    inner = getattr(module, "_orig_mod", module)
    assert isinstance(inner, nn.Module)
    return inner


def is_compiled(module: nn.Module) -> bool:
    """Whether the module or a part of it was compiled in place by ``module.compile()``."""
    return module is not original(module) or any(part._compiled_call_impl is not None for part in module.modules())


def first_tensor(output: object) -> Tensor | None:
    """Return the tensor that stands for a layer's output: itself, or the first element of a tuple or list."""
    if isinstance(output, Sequence) and not isinstance(output, str) and output:
        output = output[0]
    return output if isinstance(output, Tensor) else None


class _Store:
    """What the hooks write to; an object of its own so that copies of a module write to copies of it."""

    def __init__(self) -> None:
        self.active = False
        self.record = Record()


def _put_call(store: _Store, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
    record = store.record
    if store.active and not record.called:
        record.called = True
        record.args, record.kwargs, record.output = args, kwargs, output


def _put_layer(store: _Store, layer: str, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
    if not store.active or layer in store.record.features:
        return
    tensor = first_tensor(output)
    if tensor is None:
        raise TypeError(
            f"Layer {layer!r} ({type(module).__name__}) returned a {type(output).__name__}, not a tensor; "
            "name an inner layer that returns one."
        )
    store.record.features[layer] = tensor


def _unknown_layer(layer: str, names: list[str], role: str, model: str) -> str:
    nearest = difflib.get_close_matches(layer, names, n=5, cutoff=0.4)
    known = f"Nearest: {', '.join(nearest)}" if nearest else f"It has: {', '.join(names[:20]) or 'no layers'}"
    return f"The {role} {model} has no layer {layer!r}. {known}."
