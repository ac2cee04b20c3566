"""The student's own base as its teacher: the same weights, without the adapters."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, final

import torch
from torch import Tensor, nn

from lightning_kd.capture.call import Call
from lightning_kd.capture.hooks import Capture
from lightning_kd.capture.networks import original
from lightning_kd.capture.rows import leaves_of
from lightning_kd.distributed.unused_parameters import unused_by
from lightning_kd.teachers.base import Lesson, Teacher


def adapters_off(student: nn.Module) -> "AdaptersOff":
    """Return a teacher that answers with a student's weights, its adapters switched off; no second copy is held.

    Args:
        student: A model with adapters of PEFT: the same object that the door is given as its student.

    Raises:
        TypeError: If it has no adapters that could be switched off.

    Example:
        >>> adapters_off(nn.Linear(2, 1))
        Traceback (most recent call last):
        ...
        TypeError: adapters_off: expected a student with adapters of PEFT (get_peft_model), got a Linear.
    """
    return AdaptersOff(student)


@final
class AdaptersOff(Teacher):
    """Runs the student without its adapters, in eval mode and without gradients, and leaves it as it was.

    Dropout stays on in the student and is off in the teacher. Which weights train stays as it was: adapters that the
    user has frozen stay frozen, which PEFT's own switch would forget.

    Args:
        student: The student with its adapters.

    Raises:
        TypeError: If it has no adapters that could be switched off.
    """

    def __init__(self, student: nn.Module) -> None:
        self.student = student
        network = original(student)
        self._has_context = callable(getattr(network, "disable_adapter", None))
        has_switch = callable(getattr(network, "disable_adapters", None)) and hasattr(network, "peft_config")
        if not self._has_context and not has_switch:
            raise TypeError(
                "adapters_off: expected a student with adapters of PEFT (get_peft_model), got a "
                f"{type(network).__name__}."
            )
        self.capture = Capture(student, (), "teacher", with_call=False)

    @property
    def called(self) -> nn.Module:
        """The student, whose call the base takes too."""
        return self.student

    def answer(self, batch: Any, call: Call) -> Lesson:
        """Run the base on what the student was called with, without what would make it compute a loss."""
        answer = self._run(call)
        self.capture.check_ran(answer)
        self.capture.check_unchanged(answer, with_output=False)
        return answer

    def first_answer(self, batch: Any, call: Call) -> Call:
        """Run the base at set-up, where its layers may not be watched yet."""
        return self._run(call)

    def _check_base_is_frozen(self, call: Call) -> None:
        names = {id(p): name for name, p in self.student.named_parameters() if p.requires_grad}
        with _as_it_was(self.student), self._without_adapters(), torch.enable_grad():
            self.student.eval()
            output = self.student(*call.args, **call.kwargs)
        tensors = [t for t in leaves_of(output) if isinstance(t, Tensor) and t.requires_grad]
        used = set(names)
        for tensor in tensors:
            used -= {id(p) for p in unused_by(tensor, self.student.parameters())}
        moving = [names[one] for one in used] if tensors else []
        if moving:
            raise ValueError(
                f"adapters_off: {len(moving)} weights of the base train, such as {moving[0]!r}, so the teacher would "
                "change with the student. Freeze them (bias='none'), name their layers in modules_to_save, of which "
                "PEFT keeps the original, or give a copy of the base as teacher."
            )

    def _run(self, call: Call) -> Call:
        network = self.student
        with _as_it_was(network), self._without_adapters(), torch.no_grad(), self.capture.recording() as answer:
            network.eval()
            output = network(*call.args, **call.kwargs)
            answer.called, answer.args, answer.kwargs, answer.output = True, call.args, call.kwargs, output
        return answer

    def check_first_answer(self, lesson: Lesson) -> None:
        """Learn which layers are overwritten in place, to copy their values from then on.

        Raises:
            ValueError: If weights of the base train, so that the teacher would change with the student.
        """
        assert isinstance(lesson, Call), "our own answer"
        self._check_base_is_frozen(lesson)
        self.capture.check_ran(lesson)
        self.capture.copy_changed(lesson)

    def watch(self, layers: Iterable[str]) -> None:
        """Learn which layers the losses read, by the student's names."""
        self.capture.detach()
        self.capture = Capture(self.student, layers, "teacher", with_call=False)

    def attach(self) -> None:
        """Put the hooks on the layers."""
        self.capture.attach()

    def detach(self) -> None:
        """Take the hooks off the layers."""
        self.capture.detach()

    @contextmanager
    def _without_adapters(self) -> Iterator[None]:
        network: Any = original(self.student)
        if self._has_context:
            with network.disable_adapter():
                yield
            return
        network.disable_adapters()
        try:
            yield
        finally:
            network.enable_adapters()


@contextmanager
def _as_it_was(network: nn.Module) -> Iterator[None]:
    """Restore after the block which parts are in training mode, and which parameters train."""
    modes = [(part, part.training) for part in network.modules()]
    grads = [(parameter, parameter.requires_grad) for parameter in network.parameters()]
    try:
        yield
    finally:
        for part, mode in modes:
            if part.training is not mode:
                part.training = mode
        for parameter, grad in grads:
            if parameter.requires_grad is not grad:
                parameter.requires_grad_(grad)
