"""One batch for several students: what is made of it, and what the teacher answers, is made once."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.model_helpers import is_overridden

from lightning_kd.capture.batch import Batch
from lightning_kd.engine.one_answer import OneAnswer

TRANSFER = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")
"""Hooks that bring a batch to the device."""


class OneBatch(LightningModule):
    """Gives all students what a user's class makes of a batch, even if the class draws random numbers for that.

    Args:
        members: The module of each student by its name; a hook of their class that brings a batch to the device is this
            one's too.
    """

    def __init__(self, members: Mapping[str, LightningModule]) -> None:
        super().__init__()
        for name, member in members.items():
            self.add_module(name, member)
        for hook in TRANSFER:
            # Lightning 2.6 asks a data module only for those hooks that the module does not override
            if is_overridden(hook, self.first):
                setattr(self, hook, getattr(self.first, hook))
        self.answers = OneAnswer()
        """Asks the teacher for all students."""
        self._read: tuple[Any, Batch] | None = None
        self._in_step = False

    @property
    def first(self) -> Any:
        """The module of the first student."""
        return next(self.children())

    def begin_answers(self) -> None:
        """Forget which layers of the teacher are watched."""
        self.answers = OneAnswer()

    @contextmanager
    def one_batch(self) -> Iterator[None]:
        """Keep what is made of a batch until all students have had it."""
        self._in_step = True
        try:
            yield
        finally:
            self._in_step, self._read = False, None
            self.answers.forget()

    def read_once(self, unpack: Callable[[Any], Batch], batch: Any) -> Batch:
        """Take a batch apart as the first student does, within a step."""
        if not self._in_step:
            return unpack(batch)
        if self._read is None or self._read[0] is not batch:
            self._read = (batch, unpack(batch))
        return self._read[1]
