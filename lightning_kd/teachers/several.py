"""Several frozen networks of which one, or some, answer at a time."""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any, ClassVar

from torch import Tensor, nn

from lightning_kd.capture.batch import logits_of
from lightning_kd.capture.call import Call
from lightning_kd.capture.columns import takes
from lightning_kd.capture.heads import SeveralHeadsError
from lightning_kd.capture.hooks import Capture
from lightning_kd.capture.networks import original
from lightning_kd.capture.padding import Positions
from lightning_kd.distributed.whole_state import on_meta
from lightning_kd.files.precision import Precision
from lightning_kd.teachers.base import Lesson, Teacher
from lightning_kd.teachers.frozen import FrozenTeacher, check_not_lazy, refuses_to_move


class Several(nn.Module):
    """Networks of which one runs when this is called.

    Args:
        members: The networks.
    """

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.now = 0
        """Number of the network that runs."""

    @property
    def called_alike(self) -> list[nn.Module]:
        """The networks that a call is handed on to, each with what it takes."""
        return list(self.members)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the network that runs now, with those of the named inputs that it takes."""
        member = self.members[self.now]
        return member(*args, **{name: value for name, value in kwargs.items() if name in takes(member)})


class SeveralTeachers(FrozenTeacher):
    """Holds several networks, frozen and in eval mode, which have layers of the same names and shapes.

    A subclass says in :meth:`answer` who is asked. At set-up all of them are asked, so that one that does not fit is
    found before the training.

    Args:
        members: The networks.
        labels: What each is called in messages.
        dtype: Format that they compute in; by default what their owner is converted to.

    Raises:
        ValueError: If one is no network, or has no weights.
    """

    owner: ClassVar[str] = "SeveralTeachers"
    """The name of the class, for messages."""

    def __init__(self, members: Sequence[nn.Module], labels: Sequence[str], dtype: Precision | None = None) -> None:
        for label, member in zip(labels, members, strict=True):
            if isinstance(member, Teacher) or not isinstance(member, nn.Module):
                raise ValueError(f"{self.owner}: expected a network as {label}, got a {type(member).__name__}.")
            check_not_lazy(member)
            if on_meta(member):
                raise ValueError(f"{self.owner}: {label} is on the meta device; build it with its weights.")
            if dtype is not None and refuses_to_move(member):
                raise ValueError(f"{self.owner}: dtype cannot change the format of {label}; leave it out.")
        self.labels = list(labels)
        super().__init__(Several(members), dtype)
        self.stays = self.stays or any(map(refuses_to_move, members))
        self._captures: list[Capture] = []
        self._positions: list[Positions] = []
        self._first: list[Call] = []
        self.watch(())

    @property
    def holder(self) -> Several:
        """The module that holds the networks."""
        inner = original(self.module)
        assert isinstance(inner, Several), "made here"
        return inner

    @property
    def layered(self) -> nn.Module:
        """The first network, whose layers have the names of all."""
        return self.holder.members[0]

    def watch(self, layers: Iterable[str]) -> None:
        """Learn which layers the losses read, of every network.

        Raises:
            ValueError: If one has no layer of that name.
        """
        names = tuple(layers)
        self.detach()
        self._captures = []
        for label, member in zip(self.labels, self.holder.members, strict=True):
            try:
                self._captures.append(Capture(member, names, "teacher", with_call=False))
            except ValueError as error:
                raise ValueError(f"{self.owner}: {label}: {error} All of its networks need the layer.") from None
        self._positions = [Positions(member, "teacher", may_change=True) for member in self.holder.members]

    def attach(self) -> None:
        """Put the hooks on the layers of every network."""
        for capture, member in zip(self._captures, self.holder.members, strict=True):
            capture.module = member
            capture.attach()

    def detach(self) -> None:
        """Take the hooks off the layers of every network."""
        for capture in self._captures:
            capture.detach()

    def ask(self, index: int, call: Call) -> Call:
        """Return what one of the networks and its watched layers gave.

        Args:
            index: Number of the network.
            call: What it is called with.
        """
        with self.alone():
            answer = self._run(self._choose(index, call))
            self.capture.check_ran(answer)
            self.capture.check_unchanged(answer, with_output=False)
        return answer

    def ask_all(self, batch: Any, call: Call) -> list[Call]:
        """Return what every network gives at set-up."""
        self._first = []
        for index, positions in enumerate(self._positions):
            with self.alone():
                if index and call.kwargs:  # the engine has settled those of the first
                    self.holder.now = index
                    positions.settle(call.args, self._taken(index, call))
                try:
                    self._first.append(super().first_answer(batch, self._choose(index, call)))
                except Exception as error:
                    error.add_note(f"That was {self.labels[index]} of the {self.owner}.")
                    raise
        self.holder.now = 0
        self.capture = self._captures[0]
        return self._first

    def check_first_answer(self, lesson: Lesson) -> None:
        """Check that all networks give the same shapes, and learn which layers are overwritten in place.

        Raises:
            ValueError: If the shapes of logits or layers differ.
        """
        first, self._first = self._first, []
        for capture, answer in zip(self._captures, first, strict=True):
            capture.check_ran(answer)
            capture.copy_changed(answer)
        shapes = [_shapes(answer) for answer in first]
        for label, found in zip(self.labels, shapes, strict=True):
            for what, shape in shapes[0].items():
                if found.get(what) != shape:
                    raise ValueError(
                        f"{self.owner}: the {what} of {self.labels[0]} have the shape {shape}, those of {label} "
                        f"{found.get(what)}; all of its networks need the same."
                    )

    def _choose(self, index: int, call: Call) -> Call:
        """Let one network run next, and return what it is called with."""
        self.holder.now = index
        self.capture = self._captures[index]
        if not index or not call.kwargs:
            return call
        return Call(args=call.args, kwargs=self._positions[index](call.args, self._taken(index, call)))

    def _taken(self, index: int, call: Call) -> dict[str, Any]:
        taken = takes(self.holder.members[index])
        return {name: value for name, value in call.kwargs.items() if name in taken}


def _shapes(answer: Call) -> dict[str, tuple[int, ...]]:
    found = {f"values of layer {name!r}": tuple(value.shape) for name, value in answer.features.items()}
    with suppress(SeveralHeadsError):
        logits = logits_of(answer.output)
        if isinstance(logits, Tensor):
            found["logits"] = tuple(logits.shape)
    return found
