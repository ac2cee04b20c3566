"""One answer of a teacher for several students that see the same batch."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from lightning_kd.capture.batch import Hooks
from lightning_kd.capture.call import Call
from lightning_kd.capture.columns import is_own
from lightning_kd.capture.rows import leaves_of
from lightning_kd.teachers.base import Lesson
from lightning_kd.teachers.inputs import TeacherInputs


class OneAnswer:
    """Asks a teacher once a batch, on behalf of all students that are called with the same.

    The teacher's layers that any of the students' losses reads are watched together. A student that is called with
    something else gets an answer of its own.

    Example:
        >>> answers, batch, call = OneAnswer(), object(), Call(args=(torch.ones(2, 3),))
        >>> asked = []
        >>> def answer(view):
        ...     asked.append(view)
        ...     return Call(output=torch.zeros(2, 1))
        >>> for _ in range(2):
        ...     _ = answers.to_call(batch, call, lambda: call, answer, may_draw=False)
        >>> len(asked)
        1
    """

    def __init__(self) -> None:
        self._layers: dict[int, tuple[str, ...]] = {}
        self._layers_only: dict[int, bool] = {}
        self.forget()

    def forget(self) -> None:
        """Keep nothing of a batch."""
        self._batch: Any = None
        self._of_calls: list[tuple[list[Any], Lesson]] = []
        self._of_views: list[tuple[list[Any], Lesson]] = []

    def watch(self, student: int, layers: Iterable[str], *, layers_only: bool) -> tuple[str, ...]:
        """Take note of what the losses of a student read of the teacher.

        Args:
            student: Number of the student.
            layers: The teacher's layers.
            layers_only: Whether the teacher's output is not read.

        Returns:
            The layers that any student's losses read.
        """
        self._layers[student], self._layers_only[student] = tuple(layers), layers_only
        return tuple(dict.fromkeys(layer for one in self._layers.values() for layer in one))

    @property
    def layers_only(self) -> bool:
        """Whether no student's losses read the teacher's output, so that it may stop after the layers."""
        return all(self._layers_only.values())

    def to_call(
        self, batch: Any, call: Call, look: Callable[[], Call], answer: Callable[[Call], Lesson], *, may_draw: bool
    ) -> Lesson:
        """Return the answer to a student's call; the teacher is asked if it was not asked the same before.

        Args:
            batch: The batch as the data loader gave it.
            call: The student's call.
            look: Returns what the teacher is called with.
            answer: Asks the teacher.
            may_draw: Whether looking may draw random numbers, so that students that are called with the same must not
                look again.
        """
        if batch is not self._batch:
            self.forget()
            self._batch = batch

        def look_and_answer() -> Lesson:
            view = look()
            return _known(self._of_views, view, lambda: answer(view))

        return _known(self._of_calls, call, look_and_answer) if may_draw else look_and_answer()


def may_draw(hooks: Hooks) -> bool:
    """Whether a user's own code makes the teacher's inputs, which may draw random numbers."""
    view = getattr(hooks, "teacher_view", None)
    return not is_own(hooks.teacher_inputs) or not (view is None or isinstance(view, TeacherInputs))


def _known(kept: list[tuple[list[Any], Lesson]], call: Call, otherwise: Callable[[], Lesson]) -> Lesson:
    """Return the answer that is kept for the same inputs, or get and keep one."""
    inputs = [len(call.args), *call.kwargs, *leaves_of((call.args, call.kwargs))]
    for known, lesson in kept:
        if len(known) == len(inputs) and all(map(_same, known, inputs)):
            return lesson
    lesson = otherwise()
    kept.append((inputs, lesson))
    return lesson


def _same(one: Any, other: Any) -> bool:
    if one is other:
        return True
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        alike = one.shape == other.shape and one.dtype == other.dtype and one.device == other.device
        return alike and torch.equal(one, other)
    return type(one) is type(other) and isinstance(one, int | float | str) and one == other
