"""Ask a training step, without letting it run, what it calls the student with."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import nn

from lightning_kd.capture import Record
from lightning_kd.traceless import traceless


class _StudentReachedError(Exception):
    """Ends a training step as soon as the student is reached, before the step can have a side effect."""


def call_until_student(pl_module: LightningModule, student: nn.Module, batch: Any) -> None:
    """Run a module's training step on a batch until the student has returned; nothing is logged or kept."""

    def stop(*_: Any) -> None:
        raise _StudentReachedError

    handle = student.register_forward_hook(stop)
    try:
        with _muted(pl_module), suppress(_StudentReachedError):
            _step(pl_module, batch)
    finally:
        handle.remove()


def student_call(pl_module: LightningModule, student: nn.Module, batch: Any) -> Record:
    """Return what a module's training step calls the student with, without calling it; nothing is logged."""
    with _muted(pl_module):
        return inputs_of(student, lambda: _step(pl_module, batch))


def inputs_of(student: nn.Module, step: Callable[[], object]) -> Record:
    """Return what a step calls the student with, without calling it.

    Args:
        student: The module that would be called.
        step: Calls it.

    Raises:
        ValueError: If the step does not reach the student.
    """
    found: list[Record] = []

    def stop(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found.append(Record(args=args, kwargs=kwargs))
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
    return step(*(batch, 0)[: len(inspect.signature(step).parameters)])


@contextmanager
def _muted(pl_module: LightningModule) -> Iterator[None]:
    """Let a step pass without effect on the module, and its logging too: outside of the loop there is no log."""
    with traceless(pl_module):
        vars(pl_module).update(dict.fromkeys(("log", "log_dict"), _ignore))
        yield


def _ignore(*args: Any, **kwargs: Any) -> None:
    """Stand in for a logging method."""
