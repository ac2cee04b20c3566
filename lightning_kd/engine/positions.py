"""What the networks of a step are told of padding on the left, and of several documents in a row."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from torch import nn

from lightning_kd.capture.call import Call
from lightning_kd.capture.columns import Inputs
from lightning_kd.capture.padding import Positions
from lightning_kd.capture.probe import is_shared_out


class StepPositions:
    """What student, teacher and peers must be told of positions.

    Args:
        student: The student.
        may_change: Whether the student's calls can be changed.
        apart: Has the networks answer in full, in calls that are no part of the step.
    """

    def __init__(
        self, student: nn.Module, *, may_change: bool, apart: Callable[[], AbstractContextManager[None]]
    ) -> None:
        self.apart = apart
        self.in_set_up = False
        self.student = self._of(student, "student", may_change=may_change)
        self.teacher: Positions | None = None
        self._peers: dict[nn.Module, Positions] = {}

    def _of(self, network: nn.Module, role: str, *, may_change: bool = True) -> Positions:
        return Positions(network, role, may_change=may_change, whole=self.apart, waits=self._waits)

    def _waits(self) -> bool:
        return self.in_set_up

    def see_teacher(self, network: nn.Module | None) -> None:
        """Take note of the network that the teacher calls."""
        if network is not None and (self.teacher is None or self.teacher.network is not network):
            self.teacher = self._of(network, "teacher")

    @contextmanager
    def setting_up(self) -> Iterator[None]:
        """Wait for :meth:`settle` inside the block."""
        self.in_set_up = True
        try:
            yield
        finally:
            self.in_set_up = False

    def settle(self, batch: Any, call: Call, teacher_inputs: Callable[[], Inputs], *, reads_keys: bool = False) -> None:
        """Find out at set-up what student and teacher must be told.

        Args:
            batch: The batch as the data loader gave it.
            call: The student's recorded call.
            teacher_inputs: Returns what the teacher is called with.
            reads_keys: Whether a loss reads queries and keys, which hold positions that the answer may not.
        """
        self.student.reads_keys = reads_keys
        self.student.settle(call.args, call.kwargs, batch)
        if self.teacher is not None:
            self.teacher.reads_keys = reads_keys
            self.teacher.settle(*teacher_inputs(), batch)

    def check(self, batch: Any, call: Call) -> None:
        """Raise a ``ValueError`` if the student's call lacks what it must be told."""
        if not self.student.may_change:  # the user's own call, which can be refused only
            self.student(call.args, call.kwargs)
        self.student.check_told(call.args, call.kwargs, batch)

    def of_peer(self, network: nn.Module, call: Call) -> dict[str, Any]:
        """Return the named inputs of a peer that is called as the student is."""
        if not call.kwargs and len(call.args) < 2:
            return call.kwargs
        known = self._peers.get(network)
        if known is None:
            known = self._peers[network] = self._of(network, "peer")
            if not is_shared_out(network):
                known.settle(call.args, call.kwargs)
        return known(call.args, call.kwargs)
