"""The first call of both networks, on a small batch, without a trace in them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_info
from torch import nn

from lightning_kd.capture.attributes import looking_at
from lightning_kd.capture.call import Call, describe_call
from lightning_kd.capture.columns import gives_as_is, told_other_names
from lightning_kd.capture.networks import device_of, original
from lightning_kd.capture.trace import Ran, Trace
from lightning_kd.engine.fused_heads import BothLogits
from lightning_kd.engine.sparse_teacher import sparse_in
from lightning_kd.engine.step import TrainingStep
from lightning_kd.losses.base import DistillationLoss
from lightning_kd.teachers.base import Lesson


class FirstCall:
    """Calls student and teacher on a small batch, without a trace in them.

    Args:
        step: The training step.
        batch: The batch, on the student's device.
        call_student: Calls the student once on that batch.
        module: The whole module, which is put in eval mode meanwhile.
    """

    def __init__(
        self, step: TrainingStep, batch: Any, call_student: Callable[[Any], object], module: nn.Module
    ) -> None:
        self.step = step
        self.batch = batch
        self.call_student = call_student
        self._module = module

    def of_student(self) -> Call:
        """Return the student's call; the capture must be recording."""
        self.call_student(self.batch)
        (call,) = self.step.capture.counting_calls()
        return call

    @contextmanager
    def rehearsing(self) -> Iterator[None]:
        """Call student and teacher without a trace, on whichever device each is.

        With gradients, for a training step may call the student without gradients first, which does not count.
        """
        teacher = self.step.teacher
        networks = [self.step.student]
        if teacher is not None and teacher.module is not None:
            teacher.place(device_of(self.step.student))
            networks.append(teacher.module)
        with looking_at(networks, self._module, but=(DistillationLoss,)):
            yield

    def lesson(self, call: Call) -> Lesson:
        """Ask the teacher for the first time, and say what to do if it cannot be called like the student."""
        teacher = self.step.teacher
        try:
            lesson = self.step.ask(self.batch, call, first=True)
        except Exception as error:
            if call.changed_input or teacher is None or teacher.looks_up:
                raise
            name = type(teacher if teacher.module is None else original(teacher.module)).__name__
            raise ValueError(
                f"The teacher {name} cannot be called with what the student "
                f"was called with, {describe_call(call)}: {type(error).__name__}: {error}. Override "
                "teacher_inputs(batch, args, kwargs) to return the teacher's own (args, kwargs), or pass "
                "teacher_inputs=, such as Resize(224) or Keys(rename={...}); if its weights are of another format than "
                "the student's, pass teacher_dtype."
            ) from error
        if teacher is not None and teacher.module is not None and gives_as_is(self.step.hooks):
            others = told_other_names(call.args, self.step.student, teacher.module)
            if others is not None:
                rank_zero_info(others)
        return lesson

    def logits_of_both(self) -> BothLogits:
        """Return the logits of both."""
        logits_of = self.step.hooks.logits_of
        with self.rehearsing(), self.step.capture.recording():
            call = self.of_student()
            lesson = self.lesson(call)
            return logits_of(call.output), sparse_in(lesson) or logits_of(lesson.output)

    def trace(self) -> tuple[Ran, Ran]:
        """Return what ran in each of both, in order."""
        step = self.step
        step.detach()
        step.capture.attach()
        with self.rehearsing(), step.capture.recording(), Trace(step.student) as trace:
            call = self.of_student()
            both = trace.before(step.hooks.logits_of(call.output)), self._trace_teacher(call)
        step.detach()
        return both

    def _trace_teacher(self, call: Call) -> Ran:
        teacher = self.step.teacher
        if teacher is None or teacher.layered is None:
            return Ran()
        with Trace(teacher.layered) as trace:
            lesson = self.lesson(call)
            return trace.before(self.step.hooks.output_options.as_returned(lesson.output, self.step.hooks.logits_of))
