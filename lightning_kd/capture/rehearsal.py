"""Find out what a training step calls the student with: run the step up to there, and undo what it did."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch import LightningModule
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import nn

from lightning_kd.capture.call import Call
from lightning_kd.capture.networks import device_of
from lightning_kd.capture.no_trace import leaving_no_trace

_FAILED = (
    "To learn the sizes, DistillationCallback runs {}.training_step on two samples before the fit, up to the student, "
    "and that failed with {}: {}. Let the step use what is there during the fit only after the student is called, or "
    "set example_input_array, with which the module is then called in place of the step."
)


class _StudentReachedError(BaseException):
    """Ends a training step at the student. An ``except Exception`` in the step does not catch a ``BaseException``."""


def call_until_student(pl_module: LightningModule, student: nn.Module, batch: Any) -> None:
    """Run a module's training step on a batch until the student has returned; nothing is logged, no change is kept.

    If the step cannot run yet, the module is called with its ``example_input_array``.

    Args:
        pl_module: The module.
        student: A module inside it; a call of it without gradients does not end the step.
        batch: The batch.

    Raises:
        ValueError: If the step does not call the student.
        RuntimeError: If the step fails before it calls the student, and there is no example.
    """
    called: list[nn.Module] = []

    def note(module: nn.Module, args: object) -> None:
        called.append(module)

    def stop(*_: Any) -> None:
        if torch.is_grad_enabled():
            raise _StudentReachedError

    handles = [part.register_forward_pre_hook(note) for part in pl_module.modules()]
    handles.append(student.register_forward_hook(stop))
    try:
        with _muted(pl_module), suppress(_StudentReachedError), torch.enable_grad():
            try:
                _step(pl_module, batch)
            except Exception as error:
                if student in called:
                    raise
                if pl_module.example_input_array is None:
                    raise RuntimeError(_FAILED.format(type(pl_module).__name__, type(error).__name__, error)) from error
                _call_with_example(pl_module, device_of(student))
    finally:
        for handle in handles:
            handle.remove()
    if student not in called:
        raise ValueError(_not_called(pl_module, student, called))


def _not_called(pl_module: LightningModule, student: nn.Module, called: list[nn.Module]) -> str:
    names = {module: name for name, module in pl_module.named_modules()}
    reached = [names[module] for module in dict.fromkeys(called) if names.get(module)]
    outermost = [name for name in reached if not any(name.startswith(f"{other}.") for other in reached)]
    message = f"The training step did not call the student {names.get(student, '')!r} ({type(student).__name__})"
    if outermost:
        message += (
            f", but {', '.join(map(repr, outermost))}; name the network that is to learn: "
            f"DistillationCallback(..., student={outermost[0]!r})"
        )
    return f"{message}. Call modules as self(x): self.forward(x) runs no hooks, so the call cannot be recorded."


def student_call(pl_module: LightningModule, student: nn.Module, batch: Any) -> Call:
    """Return what a module's training step calls the student with, without calling it; nothing is logged."""
    with _muted(pl_module), torch.enable_grad():
        return inputs_of(student, lambda: _step(pl_module, batch))


def inputs_of(student: nn.Module, step: Callable[[], object]) -> Call:
    """Return what a step first calls the student with, without calling it.

    Args:
        student: The module that would be called.
        step: Calls it with gradients; what it calls without them does not count.

    Raises:
        ValueError: If the step does not reach the student.
    """
    found: list[Call] = []

    def stop(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if torch.is_grad_enabled():
            found.append(Call(args=args, kwargs=kwargs))
            raise _StudentReachedError

    handle = student.register_forward_pre_hook(torch.compiler.disable(stop), with_kwargs=True)
    try:
        with suppress(_StudentReachedError):
            step()
    finally:
        handle.remove()
    if not found:
        raise ValueError("The training step did not call the student, so the teacher has no input.")
    return found[0]


def _step(pl_module: LightningModule, batch: Any) -> object:
    step = pl_module.training_step
    return step(batch, 0) if is_param_in_hook_signature(step, "batch_idx", min_args=2) else step(batch)


def _call_with_example(pl_module: LightningModule, device: torch.device) -> object:
    """Call a module with its example; a tuple or a dictionary is unpacked, as Lightning's model summary does."""
    example = move_data_to_device(pl_module.example_input_array, device)
    if isinstance(example, Mapping):
        return pl_module(**example)
    return pl_module(*example) if isinstance(example, tuple) else pl_module(example)


@contextmanager
def _muted(pl_module: LightningModule) -> Iterator[None]:
    """Undo what the block changes in the module, and mute its logging: outside of a loop, ``self.log`` raises."""
    trainer = pl_module.trainer
    loggers, trainer.loggers = trainer.loggers, [DummyLogger() for _ in trainer.loggers]
    try:
        with leaving_no_trace(pl_module):
            vars(pl_module).update(dict.fromkeys(("log", "log_dict", "print"), _ignore))
            yield
    finally:
        trainer.loggers = loggers


def _ignore(*args: Any, **kwargs: Any) -> None:
    """Stand in for a logging method."""
