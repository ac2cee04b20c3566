"""Who asks the teacher about one batch, as a fit would."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from lightning_kd.capture.axes import axes_in_call
from lightning_kd.capture.batch import Batch, logits_of, unpack_batch, with_labels_inside
from lightning_kd.capture.call import Call
from lightning_kd.capture.columns import columns_of, gives_as_is, is_own, of_teacher
from lightning_kd.capture.followed import following
from lightning_kd.capture.heads import Head, is_output
from lightning_kd.capture.networks import original
from lightning_kd.capture.outputs import Outputs
from lightning_kd.capture.padding import Positions
from lightning_kd.engine.reading import teacher_heads
from lightning_kd.engine.step import TrainingStep
from lightning_kd.losses.base import DistillationLoss
from lightning_kd.losses.tokens.blocks import ReadsAttention
from lightning_kd.teachers.base import Lesson
from lightning_kd.teachers.frozen import FrozenTeacher
from lightning_kd.teachers.inputs import TeacherInputs, TeacherView


class Asker(Protocol):
    """Asks a teacher about batches."""

    frozen: FrozenTeacher
    layers: tuple[str, ...]
    """The teacher's layers that the losses read."""
    heads: tuple[int | str, ...]
    """Which of several outputs of the teacher the losses read by name."""
    by_function: bool
    """Whether a function of the user's makes the teacher's inputs, which may read all that a batch holds."""

    def read(self, batch: Any) -> Batch:
        """Take a batch apart."""

    def ask(self, batch: Any, read: Batch) -> Lesson:
        """Return the teacher's answer on a batch."""

    def logits(self, lesson: Lesson) -> Any:
        """Return the logits in an answer, as the teacher returned them."""

    def stop(self) -> None:
        """Leave the teacher as it was."""


class OfTeacher:
    """Asks a teacher by itself: without a student, so that the losses must name their layers.

    Args:
        frozen: The teacher.
        losses: The losses, of which the teacher's layers are read.
        view: What makes the teacher's inputs, ``None`` if it gets those of the batch.
        unpack: Takes a batch apart.
        head: Which of several outputs the task reads.

    Raises:
        ValueError: If a loss names no layers, or one that does not exist.
    """

    def __init__(
        self,
        frozen: FrozenTeacher,
        losses: Sequence[DistillationLoss],
        view: TeacherView | None = None,
        unpack: Callable[[Any], Batch] = unpack_batch,
        head: Head = None,
    ) -> None:
        leaves = [leaf for loss in losses for _, leaf in loss.leaves()]
        for leaf in leaves:
            if leaf.needs_layers:
                raise ValueError(
                    f"{type(leaf).__name__} names no layers, and which it would read depends on the student too; name "
                    "them, or pass student=..., for which they are chosen as in a fit."
                )
            if isinstance(leaf, ReadsAttention):
                leaf.see_blocks("teacher", original(frozen.module))
        self.frozen, self.view, self.unpack = frozen, view, unpack
        self.by_function = not _is_ready_part(view)
        self.positions = Positions(frozen.module, "teacher", may_change=True)
        self._settled = False
        self.heads, self.outputs = teacher_heads(leaves), Outputs(teacher_logits=head)
        self.layers = tuple(dict.fromkeys(n for leaf in leaves for n in leaf.teacher_layers if not is_output(n)))
        frozen.watch(self.layers)
        frozen.attach()

    def read(self, batch: Any) -> Batch:
        """Take a batch apart; labels are inputs of a teacher that makes a decoder's inputs of them."""
        read = with_labels_inside(self.unpack(batch), batch, self.frozen.module)
        if self.view is not None:
            return read
        _, kwargs = of_teacher(batch, read.args, read.kwargs, self.frozen.module, self.frozen.module)
        return replace(read, kwargs={**read.kwargs, **_only_in_batch(kwargs, read, batch)})

    def ask(self, batch: Any, read: Batch) -> Lesson:
        """Return the teacher's answer on a batch."""
        args, kwargs = read.args, read.kwargs
        if isinstance(self.view, TeacherInputs):
            if not self.view.ready:
                self.view.see_networks(None, self.frozen.module)
            args, kwargs = self.view.of_batch(batch, args, kwargs)
        elif self.view is not None:
            args, kwargs = self.view(args, kwargs)
        else:
            args, kwargs = of_teacher(batch, args, kwargs, self.frozen.module, self.frozen.module)
        if not self._settled:
            self._settled = True
            self.positions.settle(args, kwargs, batch)
        self.positions.check_told(args, kwargs, batch)
        return self.frozen.answer(batch, Call(args=args, kwargs=self.positions(args, kwargs)))

    def logits(self, lesson: Lesson) -> Any:
        """Return the logits in an answer."""
        return self.outputs.as_returned(lesson.output, logits_of)

    def stop(self) -> None:
        """Leave the teacher as it was."""
        self.frozen.detach()


class OfStep:
    """Asks the teacher of a training step that is set up, just as a fit would.

    Args:
        step: The step, whose losses know their layers.
    """

    def __init__(self, step: TrainingStep) -> None:
        assert isinstance(step.teacher, FrozenTeacher), "checked by the writer"
        self.step, self.frozen = step, step.teacher
        components = step.objective.components
        self.layers = tuple(dict.fromkeys(n for one in components for n in one.teacher_layers if not is_output(n)))
        self.heads = teacher_heads(components)
        view = getattr(step.hooks, "teacher_view", None)
        self.by_function = not (is_own(step.hooks.teacher_inputs) and _is_ready_part(view))
        self._of_teacher: set[str] = set()
        """The columns that the teacher takes and the student does not."""
        step.attach()

    def read(self, batch: Any) -> Batch:
        """Take a batch apart, with the columns that only the teacher takes: they tell rows apart, too."""
        read = self.step.hooks.unpack_batch(batch)
        if not gives_as_is(self.step.hooks):
            return read
        _, kwargs = self.step.of_teacher(batch, read.args, read.kwargs)
        more = _only_in_batch(kwargs, read, batch)
        self._of_teacher |= set(more)
        return replace(read, kwargs={**read.kwargs, **more})

    def ask(self, batch: Any, read: Batch) -> Lesson:
        """Return the teacher's answer on a batch."""
        kwargs = {name: value for name, value in read.kwargs.items() if name not in self._of_teacher}
        return self.step.ask(batch, Call(called=True, args=read.args, kwargs=kwargs), lambda: read)

    def logits(self, lesson: Lesson) -> Any:
        """Return the logits in an answer."""
        return self.step.hooks.output_options.as_returned(lesson.output, self.step.hooks.logits_of)

    def stop(self) -> None:
        """Leave the networks as they were."""
        self.step.detach()


def _only_in_batch(kwargs: Mapping[str, Any], read: Batch, batch: Any) -> dict[str, Any]:
    """Return what a teacher is given as it stands in the batch, beside what the batch was taken apart into."""
    columns = columns_of(batch) or {}
    return {n: value for n, value in kwargs.items() if n in columns and value is columns[n] and n not in read.kwargs}


def _is_ready_part(view: object) -> bool:
    """Whether what makes the teacher's inputs is none, or of this package, which reads no options."""
    return view is None or (is_own(type(view)) and all(map(_is_ready_part, getattr(view, "parts", ()))))


def axes_of_layers(asker: Asker, batch: Any, read: Batch) -> dict[str, dict[str, Any]]:
    """Return as plain data what the axes of the teacher's layers mean.

    Raises:
        ValueError: If the rows of a layer are not those of the batch, so that they cannot be stored by row.
    """
    if not asker.layers:
        return {}
    with following(asker.frozen.module) as runs:
        lesson = asker.ask(batch, read)
    assert isinstance(lesson, Call), "a frozen teacher's answer"
    found = axes_in_call(asker.frozen, lesson.args, lesson.kwargs, read.target, asker.layers, runs)
    for name in asker.layers:
        axes = found.get(name)
        if axes is None or axes.batch != 0 or axes.windows != 1:
            folded = axes is not None and axes.windows != 1
            why = "its rows are windows of samples" if folded else "its samples are not on axis 0"
            raise ValueError(
                f"The teacher's layer {name!r} cannot be stored by row: {why}. Name a layer (B, ...) around it."
            )
    plain = {name: asdict(replace(axes, places=None)) for name, axes in found.items()}
    return {name: {key: value for key, value in of.items() if key != "places"} for name, of in plain.items()}


def fingerprint_of_weights(module: nn.Module) -> str:
    """Return the SHA-256 of the names, formats, shapes and values of all parameters and buffers."""
    digest = hashlib.sha256()
    for name, tensor in sorted((*module.named_parameters(), *module.named_buffers())):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        digest.update(bytes_of(tensor))
    return digest.hexdigest()


def bytes_of(tensor: Tensor) -> bytes:
    """Return the bytes of a tensor in the order of its axes."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
