"""Named layers -> tensors: forward hooks that record the calls of a module in a step, and its layers in each call."""

import difflib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from operator import is_ as is_same
from typing import Any

import torch
from torch import nn

from lightning_kd.capture.activation_input import activation_in, block_around, module_of, note_input, put_noted
from lightning_kd.capture.attention import part_and_block
from lightning_kd.capture.attention_kinds import Handle, find_attention, leave_all, watch
from lightning_kd.capture.attention_matrix import read_part
from lightning_kd.capture.call import Call
from lightning_kd.capture.multihead import is_of_watch
from lightning_kd.capture.networks import is_compiled, original, plain_name
from lightning_kd.capture.private import has_forward_hook, is_compiled_in_place, remove_forward_hooks, version_of
from lightning_kd.capture.store import NO_CALL, Calls, Store, put_attention, put_call, put_input, put_layer
from lightning_kd.capture.traced import stands_for

_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


class Capture:
    """Records calls of a module in a step and what named layers return, by forward hooks.

    The hooks survive copying and ``torch.compile(fullgraph=True)``. They record between :meth:`start` and :meth:`stop`,
    and only while the module is called, because activation checkpointing runs layers again in the backward pass. What
    they recorded is dropped when the step ends.

    In a training step only calls with gradients count. If there is none, the first call counts, and
    :meth:`check_gradients` reports it. A layer that returns a tuple or list counts with its first element. A recorded
    value that is changed in place later is found by its version counter; compiled code has no version counters.

    Args:
        module: The module that is read; a compiled one is read through to the original.
        layers: Dotted names as in ``module.named_modules()``.
        role: ``"student"`` or ``"teacher"``, used in messages.
        with_call: Whether to record the module's own call besides its layers.
        calls: Which calls count, if there are several in a step.

    Raises:
        ValueError: If there is no layer of that name; the message shows the nearest names.

    Example:
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU())
        >>> capture = Capture(net, ["1"], role="student")
        >>> capture.attach()
        >>> with capture.recording() as call:
        ...     output = net(torch.ones(2, 2, 2))
        ...     call.features["1"].shape, call.output is output
        (torch.Size([2, 3]), True)
        >>> capture.detach()
    """

    def __init__(
        self,
        module: nn.Module,
        layers: Iterable[str],
        role: str,
        *,
        with_call: bool = True,
        calls: Calls = "one",
    ) -> None:
        self.module = module
        self.with_call = with_call
        self.layers = tuple(dict.fromkeys(layers))
        self.role = role
        self._store = Store(calls)
        self._handles: list[Handle] = []
        self._places: list[nn.Module] = []
        self.attached = False
        self.completed: Callable[[tuple[Any, ...], dict[str, Any]], dict[str, Any]] | None = None
        """Adds to the named inputs of :meth:`call` what the module must be told besides, which is not recorded."""
        inner = original(module)
        names = [name for name, _ in inner.named_modules(remove_duplicate=False) if name]
        known = {plain_name(name) for name in names}
        for layer in self.layers:
            if plain_name(module_of(layer)) not in known:
                raise ValueError(_unknown_layer(module_of(layer), names, role, type(inner).__name__))

    def attach(self) -> None:
        """Put the hooks on; a second call moves them to the modules that have taken the layers' places since.

        Lightning, precision plugins and callbacks swap layers after set-up: BatchNorm for SyncBatchNorm, or Linear for
        one of fewer bits. A graph that was compiled before its module had hooks runs without them. So compiled code is
        dropped, and the next call compiles again.

        Raises:
            RuntimeError: If there is no layer of a name any more.
        """
        places = [self.module, *map(self._find, self.layers)]
        if self.attached and all(map(is_same, places, self._places)):
            return
        self._take_off()
        self.attached = True
        self._places = places
        if self.with_call:
            self._attach_call()
        blocks: dict[str, nn.Module] = {}
        for layer, place in zip(self.layers, places[1:], strict=True):
            found = part_and_block(layer)
            if activation_in(layer) is not None:
                self._attach_input(layer, place)
            elif found is None:
                self._handles.append(place.register_forward_hook(partial(put_layer, self._store, layer)))
            else:
                blocks[found[1]] = place
        for block, place in blocks.items():
            self._handles.append(watch(place, partial(put_attention, self._store, block)))
        if self._handles and is_compiled(self.module):
            torch.compiler.reset()

    def _find(self, layer: str) -> nn.Module:
        inner = original(self.module)
        named = module_of(layer)
        for name in (named, plain_name(named)):
            with suppress(AttributeError):
                place = inner.get_submodule(name)
                if part_and_block(layer) is None:
                    return place
                attention = find_attention(place, name, self.role)
                if attention is not None:
                    return attention
        raise RuntimeError(
            f"The {self.role} {type(inner).__name__} has no layer {layer!r} any more: something has replaced modules "
            "since the losses were built, such as a callback or a precision plugin. Name a layer that is left, or "
            "replace modules before the fit."
        )

    def _attach_input(self, layer: str, activation: nn.Module) -> None:
        block = self._find(block_around(module_of(layer)))
        self._handles.append(activation.register_forward_pre_hook(partial(note_input, self._store, layer)))
        self._handles.append(block.register_forward_hook(partial(put_noted, self._store, layer)))

    def _attach_call(self) -> None:
        # a module compiled in place compiles its own hooks too, each by itself, which is of no use for these
        in_place = is_compiled_in_place(self.module)
        before, after = (
            partial(torch.compiler.disable(put) if in_place else put, self._store) for put in (put_input, put_call)
        )
        self._handles.append(self.module.register_forward_pre_hook(before, with_kwargs=True))
        self._handles.append(self.module.register_forward_hook(after, with_kwargs=True))

    def detach(self) -> None:
        """Take the hooks off and leave the module as it was."""
        self.stop()
        self._take_off()
        self.attached = False

    def _take_off(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._places = []

    def start(self) -> Call:
        """Begin a step; return its first call, which the hooks fill in when the module runs."""
        store = self._store
        store.call = Call()
        store.calls = [store.call]
        store.more_calls = 0
        store.with_grad = torch.is_grad_enabled()
        store.noted.clear()
        store.active = True
        return store.call

    def stop(self) -> None:
        """End the step and drop what was recorded."""
        self._store.active = False
        self._store.call = NO_CALL
        self._store.calls = []
        self._store.noted.clear()

    @property
    def last_output(self) -> Any:
        """What the module returned last in this step, ``None`` if it was not called."""
        return self._store.call.output

    def counting_calls(self) -> list[Call]:
        """Return the calls of this step that count.

        Raises:
            RuntimeError: If the module was not called, or several times where one call is expected.
        """
        store = self._store
        if not store.calls[0].called:
            raise RuntimeError(f"The step did not call the {self.role}, so there is nothing to compare.")
        if store.more_calls and store.which == "one":
            raise RuntimeError(
                f"The step called the {self.role} {1 + store.more_calls} times. Say which calls the losses compare: "
                f"DistillationCallback(..., {self.role}_calls='first', 'last', or 'each', whose mean is taken). A call "
                "under torch.no_grad() in a training step does not count."
            )
        return list(store.calls)

    def recording(self, *, layers_only: bool = False) -> "Recording":
        """Record inside the block.

        Args:
            layers_only: Whether the module's call ends with an :class:`EnoughError` once all layers are recorded.
        """
        self._store.enough = len(self.layers) if layers_only else 0
        return Recording(self)

    def call(self, *args: Any, **kwargs: Any) -> Any:
        """Call the module and record the call, for a capture without hooks on the call itself."""
        put_input(self._store, self.module, args, kwargs)
        told = kwargs or len(args) > 1
        given = self._complete(args, kwargs) if self.completed is not None and told else kwargs
        output = self.module(*args, **given)
        put_call(self._store, self.module, args, kwargs, output)
        return output

    def _complete(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """Add what the module must be told; that may call it, which is not to be recorded."""
        assert self.completed is not None, "the caller asks first"
        with self.pausing():
            return self.completed(args, kwargs)

    @contextmanager
    def pausing(self) -> Iterator[None]:
        """Record nothing inside the block."""
        store = self._store
        active, store.active = store.active, False
        try:
            yield
        finally:
            store.active = active

    def copy_changed(self, call: Call) -> None:
        """Record copies from now on of those layers' values that were changed in place later in this call."""
        self._store.copied.update(call.changed_layers())

    def copy_before_dropout(self) -> None:
        """Record copies from now on if a dropout of the module works in place, which it does in training alone."""
        parts = original(self.module).modules()
        if any(isinstance(part, _DROPOUTS) and part.inplace and part.p > 0 for part in parts):
            self._store.copied.update(self.layers)

    def check_ran(self, call: Call) -> None:
        """Check that every layer ran once in the recorded call, and returned a tensor.

        Attention is computed here, once the whole network has run: activation checkpointing would otherwise find
        operations in the forward pass that the backward pass does not repeat.

        Raises:
            RuntimeError: If a layer did not run, or more than once; names it and the remedy.
            TypeError: If a layer returned something else.
            ValueError: If what is read of an attention cannot be known.
        """
        if call.attended:
            self._read_attention(call)
        for layer, value in call.no_tensor:
            kind = type(original(self.module).get_submodule(layer)).__name__
            raise TypeError(
                f"The {self.role} layer {layer!r} ({kind}) returned a {value}, not a tensor; name an inner layer that "
                "returns one."
            )
        if len(call.features) != len(self.layers):
            raise RuntimeError(self._missing([layer for layer in self.layers if layer not in call.features]))
        if call.ran_twice:
            raise RuntimeError(
                f"The {self.role} layer(s) {list(dict.fromkeys(call.ran_twice))} ran more than once in one forward "
                "pass, so there is no one value to read. Name a layer around or inside that runs once, or call an "
                "nn.Identity() at the place in forward that you mean, and name that."
            )

    def _read_attention(self, call: Call) -> None:
        for layer in self.layers:
            part, block = part_and_block(layer) or ("", "")
            attended = call.attended.get(block)
            if attended is None or layer in call.features:
                continue
            if attended.changed:
                raise RuntimeError(
                    f"Something has changed the queries, keys or values of the {self.role}'s {block!r} in place, so a "
                    "loss would read something else. Write x = x + y in place of x += y."
                )
            try:
                call.features[layer] = value = read_part(part, attended)
            except ValueError as error:
                raise ValueError(f"The {self.role}'s {block!r} cannot be read: {error}.") from None
            call.versions.append(version_of(value))

    def check_unchanged(self, call: Call, *, with_output: bool, with_layers: bool = True) -> None:
        """Raise a ``RuntimeError`` that names what was changed in place since it was recorded.

        Args:
            call: The recorded call.
            with_output: Whether to look at the module's output.
            with_layers: Whether to look at its layers.
        """
        layers = call.changed_layers() if with_layers else []
        if layers or (with_output and call.changed_output):
            raise RuntimeError(
                f"What the {self.role}{f' layer(s) {layers}' if layers else ''} returned was changed in place "
                "afterwards, so a loss would read something else. Set inplace=False in what follows, or write "
                "x = x + y in place of x += y."
            )

    def check_gradients(self, call: Call) -> None:
        """Raise a ``RuntimeError`` that names what ran without gradients in a step that computes them."""
        if call.without_grad and torch.is_grad_enabled():
            layers = [layer for layer in call.without_grad if layer]
            raise RuntimeError(
                f"The {self.role}{f' layer(s) {layers}' if layers else ''} ran without gradients, so no loss there "
                "could teach it. Use checkpoint(..., use_reentrant=False) for activation checkpointing, and in a "
                f"training step call the {self.role} with gradients first."
            )

    def _missing(self, layers: list[str]) -> str:
        message = (
            f"The {self.role} layer(s) {layers} did not run in this step. Name layers that every forward pass calls"
        )
        for name in layers:
            layer = original(self.module).get_submodule(module_of(name))
            if isinstance(layer, nn.ModuleList | nn.ModuleDict) and len(layer):
                inner = ", ".join(f"{name}.{key}" for key, _ in list(layer.named_children())[:3])
                return f"{message}; {name!r} is a {type(layer).__name__}, which is never called itself: name {inner}."
            if (part := stands_for(self.module, name)) is not None:
                return f"{message}; this network is traced, where few layers run: in place of {name!r} name {part!r}."
        return f"{message}, such as one around them."


class Recording:
    """A block in which a :class:`Capture` records. A class is several times faster here than a generator."""

    def __init__(self, capture: Capture) -> None:
        self.capture = capture

    def __enter__(self) -> Call:
        return self.capture.start()

    def __exit__(self, *_: object) -> None:
        self.capture.stop()


def without_captures(copy: nn.Module) -> None:
    """Take the hooks of every :class:`Capture` off a copy of a module: a capture has no handles of copied hooks."""
    for part in copy.modules():
        remove_forward_hooks(part, _is_ours)
    leave_all(copy, _is_ours)


def is_hooked_by_others(module: nn.Module) -> bool:
    """Whether somebody else has put hooks on a module or its parts, which expect that these run."""
    return any(has_forward_hook(part, lambda hook: not _is_ours(hook)) for part in module.modules())


def _is_ours(hook: object) -> bool:
    ours = isinstance(hook, partial) and bool(hook.args) and isinstance(hook.args[0], Store)
    return ours or is_of_watch(hook, _is_ours)


def _unknown_layer(layer: str, names: list[str], role: str, model: str) -> str:
    nearest = difflib.get_close_matches(layer, names, n=5, cutoff=0.4)
    known = f"Nearest: {', '.join(nearest)}" if nearest else f"It has: {', '.join(names[:20]) or 'no layers'}"
    return f"The {role} {model} has no layer {layer!r}. {known}."
