"""What a teacher is: somebody who answers a call of the student."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar, Literal, Protocol, Self

import torch
from torch import Tensor, nn

from lightning_kd.capture.axes import Axes
from lightning_kd.capture.call import Call
from lightning_kd.schedules import Moment

Split = Literal["train", "val", "test"]
"""Which data is read."""


class Lesson(Protocol):
    """What a teacher says of one call: its output, and the value of each layer that the losses read."""

    output: Any
    features: dict[str, Tensor]


NO_LESSON = Call()
"""What there is where no loss asks the teacher."""


class Teacher(ABC):
    """Answers what the student was called with; a network that runs, stored answers, or several networks in turn.

    A subclass writes :meth:`answer`. A teacher that runs a network keeps it as ``module``, for sizes and weights.

    Example:
        >>> class Constant(Teacher):
        ...     def answer(self, batch, call):
        ...         return Call(output=torch.zeros(len(call.args[0]), 3))
        >>> Constant().answer(None, Call(args=(torch.ones(2, 4),))).output.shape
        torch.Size([2, 3])
    """

    ready: bool = True
    """Whether it has something to teach; losses that need a teacher wait until then."""
    module: nn.Module | None = None
    """The network that answers, if it is one."""
    looks_up: ClassVar[bool] = False
    """Whether it looks answers up, so that a call holds the student's own call and each sample's row."""
    changes_over_time: bool = False
    """Whether it is another one at other moments of a run, of which it learns by :meth:`set_moment`."""
    reads_rows: bool = False
    """Whether it reads the batch row by row, so that the student must be called with these very rows."""

    def __deepcopy__(self, memo: dict[int, object]) -> Self:
        return self  # copies of a module, such as weight averages, share the teacher

    @abstractmethod
    def answer(self, batch: Any, call: Call) -> Lesson:
        """Return the output and the watched layers for a call.

        Args:
            batch: The batch as the data loader gave it.
            call: What the student was called with, or what ``teacher_inputs`` made of it.

        Raises:
            RuntimeError: If a watched layer did not run, or its value was changed in place afterwards.
        """

    def first_answer(self, batch: Any, call: Call) -> Lesson:
        """Answer at set-up, perhaps before any layer is watched; by default an ordinary answer."""
        return self.answer(batch, call)

    def check_first_answer(self, lesson: Lesson) -> None:
        """Check the first answer with all watched layers, and learn from it what later answers need.

        Raises:
            RuntimeError: If a watched layer did not run, or more than once.
        """

    def watch(self, layers: Iterable[str]) -> None:
        """Learn which layers the losses read, by their dotted names; called at set-up.

        Raises:
            ValueError: If there is no layer of that name; the message shows the nearest names.
        """

    @property
    def axes(self) -> Mapping[str, Axes]:
        """What the axes of its layers mean, where no network runs that would tell."""
        return {}

    @property
    def chosen_layers(self) -> Mapping[str, Mapping[str, Any]]:
        """Which layers the losses read that name none, by the names of the losses, where no network would tell."""
        return {}

    @property
    def number(self) -> int | None:
        """What its answers come to, where no network tells; other answers have another number."""
        return None

    def begin_split(self, split: Split) -> None:
        """Learn which data is read from now on; ``ready`` may depend on it."""

    def see_fit(self, samples: int | None, options: Mapping[str, Any]) -> None:
        """Learn of the data and the options of a fit, for one that looks up.

        Args:
            samples: How many samples the training data has, ``None`` if that is not known.
            options: How outputs are read, and what would make the teacher's inputs, as plain data.
        """

    def set_moment(self, moment: Moment) -> None:
        """Learn how far the run has come."""

    def attach(self) -> None:
        """Begin to watch: put hooks on, open files."""

    def detach(self) -> None:
        """Leave no trace on a network."""

    def alone(self) -> AbstractContextManager[object]:
        """Keep fits in other threads from the teacher during a block, if it could not serve several at once."""
        return nullcontext()

    def place(self, device: torch.device) -> None:
        """Answer on a device."""

    @property
    def called(self) -> nn.Module | None:
        """The network whose ``forward`` a call must suit, ``None`` if there is none."""
        return self.module

    @property
    def layered(self) -> nn.Module | None:
        """The network whose layers the losses name, ``None`` if there is none."""
        return self.module

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of a batch that the teacher reads itself; none by default."""
        return ()

    @property
    def stored_columns(self) -> tuple[str, ...]:
        """The columns of a batch that were read when the teacher's answers were stored; none by default."""
        return ()

    @property
    def stored_heads(self) -> tuple[int | str, ...]:
        """Which of several outputs a teacher that looks up its answers has by name; none by default."""
        return ()

    @property
    def on_meta(self) -> bool:
        """Whether there are no weights yet."""
        return False
