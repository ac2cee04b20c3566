"""What is looked at in the outputs of the first samples: heads, classes, and whether scores are probabilities."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor, nn

from lightning_kd.capture.batch import Batch
from lightning_kd.capture.call import Call
from lightning_kd.capture.followed import Followed
from lightning_kd.capture.heads import OUTPUT, Head, heads_of
from lightning_kd.capture.outputs import kind_of_probabilities
from lightning_kd.capture.rows import leaves_of
from lightning_kd.capture.watch import OperationWatch
from lightning_kd.engine.checks import check_has_logits
from lightning_kd.engine.numbers import note_axis
from lightning_kd.engine.reading import has_heads
from lightning_kd.engine.step import TrainingStep
from lightning_kd.losses.base import COMPARED, LOGITS, DistillationLoss, Shape, StepTensors
from lightning_kd.losses.logits.base import LogitLoss, head_key
from lightning_kd.losses.tokens.mean import TokenMean
from lightning_kd.losses.tokens.sparse import SparseLogits
from lightning_kd.metrics.task import Task
from lightning_kd.teachers.base import NO_LESSON, Lesson
from lightning_kd.teachers.ensemble import Ensemble

_SIGMOIDS = {torch.sigmoid, torch.sigmoid_, Tensor.sigmoid, Tensor.sigmoid_, torch.special.expit}
_FEW = 16
"""From how many values on it tells something that all of them lie between 0 and 1."""
_TRUST = "If these are logits all the same, say teacher_outputs='logits'"


class KnownTask(Protocol):
    """Who knows what the task's own loss tells."""

    @property
    def of_loss(self) -> Task:
        """What the task's loss tells, and what its calls have shown."""


class SigmoidWatch(OperationWatch):
    """Remembers what a sigmoid has returned inside the block: its values alone do not tell it from logits.

    Example:
        >>> with SigmoidWatch() as watch:
        ...     odds = torch.sigmoid(torch.zeros(2, 3))
        >>> watch.made(odds.flatten()), watch.made(torch.zeros(2, 3))
        (True, False)
    """

    def __init__(self) -> None:
        super().__init__()
        self._returned: list[Tensor] = []  # kept, for an address is used again when its tensor is gone

    def see(self, func: Callable[..., Any], args: Any, kwargs: dict[str, Any], made: Any) -> None:
        """Remember what an operation returned if it is a sigmoid."""
        if func in _SIGMOIDS and isinstance(made, Tensor):
            self._returned.append(made.detach())

    def made(self, value: Tensor) -> bool:
        """Whether a value, or another view of it, is what a sigmoid returned."""
        if value.is_meta:
            return False
        place = value.untyped_storage().data_ptr()
        return any(one.untyped_storage().data_ptr() == place and one.numel() == value.numel() for one in self._returned)


def look_at_outputs(
    step: TrainingStep,
    call: Call,
    lesson: Lesson,
    tensors: StepTensors,
    watch: SigmoidWatch,
    runs: Mapping[str, Followed | None],
    read: Batch,
) -> None:
    """Check that the outputs on the first samples have what the losses read, and are what they are taken for.

    Args:
        step: The training step.
        call: The student's recorded call.
        lesson: The teacher's answer.
        tensors: What the losses read of both.
        watch: What saw both networks.
        runs: The calls of the modules of each role, ``None`` if they were not followed.
        read: The batch taken apart, whose mask and labels tell which tokens are padding.

    Raises:
        ValueError: If logits are missing, the classes that were named do not fit, are not on axis 1, or scores are
            probabilities; the message names the remedy.
    """
    outputs = {"student": call.output, "teacher": None if lesson is NO_LESSON else lesson.output}
    leaves = step.objective.leaves
    for name, loss in leaves:
        check_has_logits(name, loss, tensors, {role: has_heads(output) for role, output in outputs.items()})
    _tell_which_is_read(step, outputs, tensors)
    _check_classes(step, tensors)
    said = step.hooks.output_options.teacher_outputs
    for name, loss in leaves:
        _check_average(name, loss, None if step.teacher is None else step.teacher.module)
        for role, head in _heads_read(loss).items():
            raw = _raw(step, role, outputs[role], head)
            if raw is not None:
                _check_axis(name, loss, role, raw, runs[role])
                note_axis(loss, raw, runs[role])
                rows = _rows_that_count(raw, step.mask_of_output(read), read.target) if _of_tokens(loss) else raw
                outputs_of = f"the {role}'s outputs {tuple(raw.shape)}"
                if role == "teacher" and said is not None:
                    _check_said(said, rows, outputs_of)
                else:
                    _check_scale(name, loss, role, rows, outputs_of, watch.made(raw))


def shapes_read(step: TrainingStep, role: str, lesson: Lesson, tensors: StepTensors) -> dict[str, Shape]:
    """Return the shapes of what the losses read of a role: its layers, its logits, and other heads by their keys."""
    features = tensors.student_features if role == "student" else tensors.teacher_features
    shapes = {name: tuple(value.shape) for name, value in features.items()}
    logits = tensors.student_logits if role == "student" else tensors.teacher_logits
    values: dict[str, Tensor | None] = {LOGITS: logits}
    if role == "student":
        values[COMPARED] = tensors.compared_logits
    if tensors.head_of is not None:
        heads = [loss.heads.get(role) for loss in step.objective.components if isinstance(loss, LogitLoss)]
        values |= {head_key(head): tensors.head_of(role, head) for head in heads if head is not None}
    return shapes | {key: tuple(value.shape) for key, value in values.items() if value is not None}


def _heads_read(loss: DistillationLoss) -> dict[str, Head]:
    """Return the head that a loss reads of each role whose logits it reads."""
    read: dict[str, Head] = {}
    if (loss.reads == "logits" and not loss.student_layers) or loss.needs_student_logits:
        read["student"] = None
    if loss.needs_teacher_logits:
        read["teacher"] = None
    return read | loss.heads if isinstance(loss, LogitLoss) else read


def _raw(step: TrainingStep, role: str, output: Any, head: Head) -> Tensor | None:
    """Return a head as its network returned it."""
    if output is None or isinstance(output, SparseLogits):
        return None
    hooks = step.hooks
    if role == "teacher" or head is not None:
        return hooks.output_options.as_returned(output, hooks.logits_of, head)
    return hooks.logits_of(output)


def _tell_which_is_read(step: TrainingStep, outputs: dict[str, Any], tensors: StepTensors) -> None:
    """Say which of several tensors of a tuple is taken for the logits, unless it was named."""
    if not step.objective.reads_logits:
        return
    named = step.hooks.output_options
    for role, logits in (("student", tensors.student_logits), ("teacher", tensors.teacher_logits)):
        heads = heads_of(outputs[role])
        head = named.logits if role == "student" or named.teacher_logits is None else named.teacher_logits
        if head is not None or logits is None or not isinstance(outputs[role], tuple | list):
            continue
        inside = [tuple(value.shape) for value in leaves_of(outputs[role]) if isinstance(value, Tensor)]
        if hasattr(outputs[role], "logits") or len(inside) < 2:
            continue
        shapes = {name: tuple(value.shape) for name, value in heads.items()} if len(heads) > 1 else inside
        other = "say logits=1" if len(heads) > 1 else "override logits_of(output)"
        rank_zero_info(f"The {role} returns {shapes}, of which the first is read as logits; or {other}.")


def _check_classes(step: TrainingStep, tensors: StepTensors) -> None:
    options = step.hooks.output_options
    if options.teacher_classes is None and options.student_classes is None:
        return
    readers = [(name, loss) for name, loss in step.objective.leaves if loss.needs_teacher_logits]
    if options.student_classes is not None:
        for name, loss in readers:
            if _of_tokens(loss):
                raise ValueError(
                    f"Part {name!r}: {type(loss).__name__} compares all of the student's classes, so it cannot leave "
                    "out those that student_classes does not name. Leave the option out, and give a teacher that "
                    "scores all of them."
                )
            if loss.needs_target:
                raise ValueError(
                    f"Part {name!r} reads the label of each sample, which may be of a class that student_classes "
                    "leaves out; use KDLoss, which needs no labels."
                )
    own = tensors.student_logits if tensors.compared_logits is None else tensors.compared_logits
    chosen = options.teacher_classes
    axis = step.reading.axis
    if chosen is not None and tensors.sparse is not None:
        raise ValueError(
            "teacher_classes has no effect on SparseLogits, whose ids are those of the student; leave it out."
        )
    if chosen is not None and own is not None and own.ndim > 1 and len(chosen) != own.shape[axis]:
        raise ValueError(
            f"teacher_classes names {len(chosen)} classes, but the student has {own.shape[axis]} that are compared; "
            "name the teacher's class for each of these, in the student's order, or choose among the student's by "
            "student_classes=[...]."
        )


def _check_axis(part: str, loss: DistillationLoss, role: str, raw: Tensor, runs: Followed | None) -> None:
    """Raise a ``ValueError`` if a loss reads the classes of maps on axis 1, and a module has put them last."""
    last = raw.ndim - 1
    reads_axis_1 = loss.output_kind in ("classes", "multilabel")
    if not reads_axis_1 or runs is None or last < 3 or runs.known_axis(raw) != last:
        return
    raise ValueError(
        f"Part {part!r}: {type(loss).__name__} reads the classes on axis 1, but the {role}'s outputs "
        f"{tuple(raw.shape)} have them last, as the layer that makes them shows. Override logits_of(output) to return "
        "output.movedim(-1, 1), or have the network return (B, C, H, W)."
    )


def _check_average(part: str, loss: DistillationLoss, teacher: nn.Module | None) -> None:
    """Raise a ``ValueError`` if a loss reads numbers of an ensemble that takes those of its members for scores."""
    of_embedding = OUTPUT in loss.teacher_layers and (loss.output_kind == "embeddings" or loss.reads == "embedding")
    reads_numbers = loss.output_kind == "regression" or of_embedding
    if isinstance(teacher, Ensemble) and teacher.average != "logits" and reads_numbers:
        raise ValueError(
            f"Part {part!r}: {type(loss).__name__} reads the teacher's outputs as numbers, but "
            f"Ensemble(average={teacher.average!r}) takes those of its members for class scores. Write "
            "Ensemble(..., average='logits'), which is the mean of the outputs as they are."
        )


def _of_tokens(loss: DistillationLoss) -> bool:
    """Whether a loss reads logits (B, T, V), whose classes are on the last axis."""
    return isinstance(loss, TokenMean)


def _rows_that_count(raw: Tensor, mask: Tensor | None, target: object) -> Tensor:
    """Return the outputs (M, V) of those tokens that are no padding, where a network may return anything.

    Args:
        raw: The outputs (B, T, V) of all tokens, or (N, V).
        mask: Which tokens of the student are no padding; a teacher may have other tokens.
        target: The labels; one below 0 is of no class.
    """
    if raw.is_meta or raw.ndim < 2:
        return raw
    positions, rows = raw.shape[:-1], raw.detach().flatten(0, -2)
    keep = ~rows.isnan().any(1) & (rows != 0).any(1)  # zeros alone are no scores
    real = None
    if mask is not None and mask.shape == positions:
        real = mask
    elif isinstance(target, Tensor) and target.shape == positions and not target.is_floating_point():
        real = target >= 0
    if real is not None and bool(real.any()):
        keep &= real.to(keep.device).flatten()
    return rows[keep]


def _check_scale(part: str, loss: DistillationLoss, role: str, rows: Tensor, shown: str, of_sigmoid: bool) -> None:
    """Raise a ``ValueError`` if what a loss reads as logits are probabilities, or the other way round.

    Args:
        part: Name of the part.
        loss: The loss.
        role: Whose outputs these are.
        rows: The outputs as they were returned, with the classes on axis 1.
        shown: Whose outputs these are, and of which shape, in words.
        of_sigmoid: Whether a sigmoid has returned them.
    """
    found = kind_of_probabilities(rows)
    several = rows.ndim > 1 and rows.shape[1] > 1
    if loss.output_kind == "classes" or _of_tokens(loss):
        # the logarithm of a softmax is a set of logits too: a constant in a row changes nothing at any temperature
        kind = "probabilities" if found == "probabilities" else "label_probabilities" if of_sigmoid else None
    elif loss.output_kind == "multilabel":
        kind = found if several and found is not None else "label_probabilities" if of_sigmoid else None
    else:
        return
    if kind is None:
        if role == "teacher":
            _tell_between_0_and_1(part, loss, rows)
        return
    what = {
        "probabilities": "are probabilities of classes (each row adds up to 1)",
        "log_probabilities": "are logarithms of probabilities of classes (each row adds up to 1)",
        "label_probabilities": "come out of a sigmoid",
    }[kind]
    remedy = (
        f"Say teacher_outputs={kind!r}. {_TRUST}."
        if role == "teacher"
        else "Let the student end with the layer before, and give the task a loss that takes logits: CrossEntropyLoss, "
        "or BCEWithLogitsLoss for labels; or override logits_of."
    )
    wrong_loss = loss.output_kind == "multilabel" and kind != "label_probabilities"
    if wrong_loss:
        remedy = "Use KDLoss, which is for classes that exclude one another, or give a network of labels."
    raise ValueError(f"Part {part!r} ({type(loss).__name__}) reads logits, but {shown} {what}. {remedy}")


def _tell_between_0_and_1(part: str, loss: DistillationLoss, raw: Tensor) -> None:
    """Warn of a teacher's outputs that all lie between 0 and 1, as probabilities of labels do, and few logits."""
    if raw.is_meta or raw.numel() < _FEW:
        return
    values = raw.detach().double()
    if bool(((values >= 0) & (values <= 1)).all()) and bool((values != values.flatten()[0]).any()):
        rank_zero_warn(
            f"Part {part!r} ({type(loss).__name__}) reads logits, but all of the teacher's outputs on the first "
            f"samples lie between {float(values.min()):.3g} and {float(values.max()):.3g}, as probabilities do. If "
            "each is the probability of a label, say teacher_outputs='label_probabilities'; if they are logits, "
            "teacher_outputs='logits'."
        )


def _check_said(said: str, raw: Tensor, shown: str) -> None:
    """Raise a ``ValueError`` if a teacher's outputs are not what ``teacher_outputs`` says."""
    if said == "logits" or raw.is_meta or not raw.numel():
        return
    several = raw.ndim > 1 and raw.shape[1] > 1
    found = kind_of_probabilities(raw)
    values = raw.detach().double()
    slack = 2e-2 if raw.dtype in (torch.float16, torch.bfloat16) else 1e-3
    if said == "log_probabilities":
        fits = found == said or (bool((values <= slack).all()) and not several)
        should = "below 0 and add up to 1 after exp"
    elif said == "probabilities" and several:
        fits, should = found == said, "not below 0 and add up to 1"
    else:
        fits, should = bool(((values >= -slack) & (values <= 1 + slack)).all()), "between 0 and 1"
    if not fits:
        raise ValueError(
            f"teacher_outputs={said!r}, but {shown} on the first samples are not: each row should be {should}. Leave "
            "teacher_outputs out for logits."
        )
