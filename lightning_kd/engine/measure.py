"""The look at what both networks return on the first samples: its shapes, its axes, and whether losses can read it."""

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor

from lightning_kd.capture.activation_input import module_of
from lightning_kd.capture.axes import Axes, axes_in_call
from lightning_kd.capture.batch import Batch, read_if_known
from lightning_kd.capture.call import Call
from lightning_kd.capture.call_mask import mask_given
from lightning_kd.capture.columns import check_embeddings, gives_as_is, is_own, target_that_is_input
from lightning_kd.capture.example import remember_call
from lightning_kd.capture.followed import Followed, following
from lightning_kd.capture.rows import leaves_of
from lightning_kd.capture.seen import batch_of
from lightning_kd.engine.attention_rows import check_attention, check_same_order
from lightning_kd.engine.checks import check_first_values
from lightning_kd.engine.first_call import FirstCall
from lightning_kd.engine.input_scale import tell_of_scale
from lightning_kd.engine.labels import check_classes
from lightning_kd.engine.layouts import are_patches, axes_of_outputs
from lightning_kd.engine.look_at_outputs import SigmoidWatch, look_at_outputs, shapes_read
from lightning_kd.engine.masks import Masks, check_mask_values, settle_masks
from lightning_kd.engine.model_loss import tell_of_router
from lightning_kd.engine.sparse_teacher import check_sparse_answer
from lightning_kd.engine.step import TrainingStep
from lightning_kd.engine.task import check_classes_on_axis_1
from lightning_kd.losses.base import Shape, StepTensors
from lightning_kd.losses.tokens.blocks import ReadsAttention
from lightning_kd.teachers.base import Lesson, Teacher

Shapes = dict[str, dict[str, Shape]]
Known = dict[str, dict[str, Axes]]


@dataclass(frozen=True)
class Measured:
    """What the first call of both networks has shown.

    Args:
        inputs: What the student was called with, without its values, if that can be kept; see ``remember_call``.
        shapes: The shapes of what the losses read, by role and name.
        known: What the axes of the layers mean, by role and name.
        masks: The masks of the batch.
    """

    inputs: dict[str, Any] | None
    shapes: Shapes
    known: Known
    masks: Masks


def measure(step: TrainingStep, first: FirstCall) -> Measured:
    """Call both networks once, check what they return, and learn what set-up needs to know.

    Args:
        step: The training step.
        first: Calls both networks on a small batch.

    Raises:
        ValueError: If the losses cannot read what the networks return.
    """
    capture, teacher = step.capture, step.teacher
    network = None if teacher is None else teacher.layered
    with first.rehearsing():
        with capture.recording(), following(step.student) as student_runs, SigmoidWatch() as watch:
            call = first.of_student()
            inputs = remember_call(call.args, call.kwargs)
            capture.check_ran(call)
            capture.copy_changed(call)
            capture.copy_before_dropout()
            if step.calls is not None and gives_as_is(step.hooks) and network is not None:
                check_embeddings(call, first.batch)
            with following(network) if network is not None else nullcontext() as teacher_runs:
                lesson = first.lesson(call)
            if teacher is not None:
                teacher.check_first_answer(lesson)
            read = step.as_called(read_if_known(step.hooks, first.batch), call)
            if step.calls is not None and is_own(step.hooks.unpack_batch):
                told = target_that_is_input(call.args, call.kwargs, read.target, read.index)
                if told is not None:
                    rank_zero_warn(told)
            followed = {"student": student_runs, "teacher": teacher_runs}
            tensors = _check_first(step, call, lesson, watch, read, followed)
        check_mask_values(step, read, mask_given(call, step.student))
        check_attention(call, lesson, network, read.target)
        for loss in step.objective.components:
            check_same_order(loss, tensors.student_features, tensors.teacher_features)
        step.settle_positions(first.batch, call)
        known = {
            "student": _axes(step, step.student, call, student_runs, "student", read),
            "teacher": _as_stored(teacher, lesson)
            if teacher_runs is None or not isinstance(lesson, Call)
            else _axes(step, teacher, lesson, teacher_runs, "teacher", read),
        }
        for role, features in (("student", tensors.student_features), ("teacher", tensors.teacher_features)):
            known[role] |= axes_of_outputs(role, features)
        shapes = {"student": shapes_read(step, "student", call, tensors)}
        shapes["teacher"] = shapes_read(step, "teacher", lesson, tensors)
        step.batch_axis = (batch_of(call.args, call.kwargs, read.target) or (0, 0))[1]
        masks = settle_masks(step, read, mask_given(call, step.student))
        _settle_patches(step, call, student_runs, read, masks)
        return Measured(inputs, shapes, known, masks)


def _axes(step: TrainingStep, network: Any, call: Call, runs: Followed, role: str, read: Batch) -> dict[str, Axes]:
    """Find what the axes of a network's layers mean, by calling the network with one sample more."""
    losses = step.objective.components
    layers = {name for loss in losses for name in getattr(loss, f"{role}_layers")}
    return axes_in_call(network, call.args, call.kwargs, read.target, layers, runs)


def _settle_patches(step: TrainingStep, call: Call, runs: Followed, read: Batch, masks: Masks) -> None:
    """Tell the losses of attention whether their blocks are of images beside a text."""
    has_both = masks.of_ids and any(isinstance(one, Tensor) and one.ndim == 4 for one in leaves_of(call.kwargs))
    for _, loss in step.objective.leaves:
        if isinstance(loss, ReadsAttention):
            loss.of_patches = False
            if not has_both:
                continue
            blocks = {module_of(layer) for layer in loss.student_layers}
            found = axes_in_call(step.student, call.args, call.kwargs, read.target, blocks, runs)
            loss.of_patches = bool(found) and all(map(are_patches, found.values()))


def _check_first(
    step: TrainingStep,
    call: Call,
    lesson: Lesson,
    watch: SigmoidWatch,
    read: Batch,
    runs: Mapping[str, Followed | None],
) -> StepTensors:
    """Check that the outputs on the first samples have what the losses read, and that it is finite."""
    tensors = step.tensors(call, lesson, Batch())
    look_at_outputs(step, call, lesson, tensors, watch, runs, read)
    tell_of_scale(runs["teacher"])
    tell_of_router(step.student, call.output, step.hooks)
    check_sparse_answer(tensors.sparse, tensors.student_logits, read.mask)
    check_classes(step.objective.leaves, read.target, tensors.student_logits)
    logits, student = tensors.student_logits, runs["student"]
    axis = None if logits is None or student is None else student.known_axis(logits)
    check_classes_on_axis_1(getattr(step.hooks, "task_loss", None), logits, read.target, axis)
    check_first_values(tensors, step.objective.components)
    return tensors


def _as_stored(teacher: Teacher | None, lesson: Lesson) -> dict[str, Axes]:
    """Return the axes of answers that no network gives; of whom nothing is known (B, C), (B, N, C) or (B, C, H, W)."""
    known = {} if teacher is None else teacher.axes
    return {
        layer: known.get(layer) or Axes(tuple(value.shape), channels={3: 2}.get(value.ndim, 1))
        for layer, value in lesson.features.items()
    }
