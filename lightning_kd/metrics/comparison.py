"""Student against teacher on a labelled or unlabelled data set."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import MeanMetric, MeanSquaredError, Metric

from lightning_kd.metrics.axes import axis_of_classes, ids_of, without_channel
from lightning_kd.metrics.counts import F1, Correlation, Share
from lightning_kd.metrics.task import IGNORE_INDEX, Kind, Task, holds_ids, out_of_range

_REMEDY = "give metrics=... of your own, or a task_loss of torch that names the task"
_MARKS = (IGNORE_INDEX, -1, 255)
"""Ids outside the classes that are in common use for "no label"; another one is read as a label that does not fit."""


class Comparison:
    """What student and teacher do on the task, and how often the two agree, over one evaluation.

    =================  ========================  =========================================
    task               against the target        student against teacher
    =================  ========================  =========================================
    classes, pixels,   accuracy                  agreement: the same class
    tokens
    binary, one logit  accuracy                  agreement: the same side of 0
    multi-label        f1 (micro)                agreement: the same labels, label by label
    regression         mse, pearson              mse_to_teacher, pearson_to_teacher
    embeddings         cosine                    cosine_to_teacher
    =================  ========================  =========================================

    The teacher's value against the target has ``teacher_`` before its name. What does not fit the data is left out;
    ``left_out`` says why. Each value is a sum over a count: how the data is split into batches and processes does not
    change it.

    Args:
        task: What is known of the task beforehand.

    Example:
        >>> comparison = Comparison()
        >>> student, teacher = torch.tensor([[2.0, 1.0], [2.0, 1.0]]), torch.tensor([[3.0, 0.0], [0.0, 3.0]])
        >>> comparison.update(student, teacher, torch.tensor([0, 1]))
        >>> comparison.compute()
        {'accuracy': 0.5, 'teacher_accuracy': 1.0, 'agreement': 0.5}
    """

    def __init__(self, task: Task | None = None) -> None:
        self.task = task or Task()
        self.left_out: dict[str, str] = {}
        """Why a value is left out, by name."""
        self.lost_target = False
        """Whether a batch had outputs whose target is not known."""
        self._metrics: dict[str, Metric] = {}
        self._kinds: dict[bool, tuple[Kind | None, str]] = {}
        self._refused: set[str] = set()

    def update(
        self, student: Tensor | None, teacher: Tensor | None, target: object, mask: Tensor | None = None
    ) -> None:
        """Count one batch; whatever is ``None``, or of another kind than the task's, is left out.

        Args:
            student: The student's outputs.
            teacher: The teacher's outputs.
            target: What both are compared with.
            mask: Which tokens (B, L) of outputs of tokens count, or which samples (B,); all by default.
        """
        if student is None or not student.is_floating_point() or student.ndim < 1:
            return
        labels = target if isinstance(target, Tensor) and not target.is_complex() else None
        if labels is not None:
            labels = labels.to(student.device)
        if mask is not None:
            student, teacher, labels = self._masked(mask.to(student.device), student, teacher, labels)
        if target is not None and labels is None:
            self._leave_out("accuracy", f"the target is a {type(target).__name__}, no tensor")
        if (labels is not None) not in self._kinds:
            self._kinds[labels is not None] = self.kind_of(student, labels)
        kind, why = self._kinds[labels is not None]
        if kind is None or kind == "other":
            self._leave_out("agreement", why)
            return
        count: dict[Kind, Callable[[Tensor, Tensor | None, Tensor | None], None]] = {
            "classes": self._count_classes,
            "multilabel": self._count_labels,
            "regression": self._count_values,
            "embeddings": self._count_vectors,
        }
        count[kind](student, teacher, labels)

    def lose_target(self) -> None:
        """Leave out what is compared with the target, of a batch whose target is not that of the outputs.

        What earlier batches gave is not a number from now on: it would be of some of the samples alone.
        """
        self.lost_target = True
        for name in ("teacher_accuracy", "teacher_f1", "teacher_mse", "teacher_pearson", "teacher_cosine"):
            metric = self._metrics.get(name)
            if metric is None:
                self._refused.add(name)
            else:
                _lose(metric)
        if "teacher_accuracy" in self._refused:  # one line for all of them
            why = "the step calls the student with other samples than the batch holds, whose targets are not known"
            self.left_out.setdefault("teacher_accuracy", why)

    def updated(self) -> dict[str, Metric]:
        """Return the metrics that have data, by name."""
        return {name: metric for name, metric in self._metrics.items() if metric.update_called}

    def compute(self) -> dict[str, float]:
        """Return the values that have data, over all processes."""
        return {name: float(metric.compute()) for name, metric in self.updated().items()}

    def unread(self, name: str) -> bool:
        """Whether a value is not a number because some ids name no class, or some targets are not known."""
        metric = self._metrics[name]
        return (isinstance(metric, Share) and bool(metric.strange > 0)) or _is_lost(metric)

    def _masked(
        self, mask: Tensor, student: Tensor, teacher: Tensor | None, labels: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Return what counts, as rows; a mask of other axes than the outputs' says nothing."""
        if student.ndim == 3 and mask.ndim == 2 and (self.task.class_axis == 1 or _is_last(student, mask)):
            if labels is not None and labels.shape == student.shape:
                labels = labels.mT
            student, teacher = student.mT, teacher.mT if teacher is not None and teacher.ndim == 3 else teacher
        if student.shape[: mask.ndim] != mask.shape or (mask.ndim == 2 and student.ndim < 3):
            return student, teacher, labels
        if teacher is not None and teacher.shape[: mask.ndim] == mask.shape:
            teacher = teacher[mask]
        if labels is not None and labels.shape[: mask.ndim] == mask.shape:
            labels = labels[mask]
        return student[mask], teacher, labels

    # What the task is

    def kind_of(self, student: Tensor, target: Tensor | None) -> tuple[Kind | None, str]:
        """Return the kind of the task, or why it is not known."""
        if self.task.kind is not None:
            return self.task.kind, "the task's loss reads the outputs otherwise than as scores or values"
        if student.ndim == 3 and student.shape[1] == student.shape[2] and self.task.class_axis is None:
            return None, f"either axis of outputs of shape {tuple(student.shape)} may be that of the classes; {_REMEDY}"
        if target is None:  # what they agree on is what has the highest score
            return ("classes", "") if student.ndim > 1 else (None, "there is no target, and the outputs have one axis")
        ids = ids_of(student, target, None) if holds_ids(target) else None
        if ids is not None:
            return self._kind_of_ids(student, ids.long())
        if target.shape == student.shape and _are_distributions(target, axis_of_classes(student)):
            return "classes", ""
        return None, (
            f"outputs of shape {tuple(student.shape)} with a target of shape {tuple(target.shape)} and type "
            f"{str(target.dtype).removeprefix('torch.')} may be classes, labels or values; {_REMEDY}"
        )

    def _kind_of_ids(self, student: Tensor, ids: Tensor) -> tuple[Kind | None, str]:
        number = student.shape[axis_of_classes(student, ids)]
        marks = _MARKS if self.task.ignore_index is None else (IGNORE_INDEX, self.task.ignore_index)
        strange = out_of_range(ids, number) & (sum(ids == mark for mark in marks) == 0)
        if not strange.any():
            return "classes", ""
        return None, (
            f"the target holds the id {int(ids[strange][0])}, but the outputs {tuple(student.shape)} score {number} "
            f"classes at most, so they may be no class scores; {_REMEDY}"
        )

    # Classes

    def _count_classes(self, student: Tensor, teacher: Tensor | None, target: Tensor | None) -> None:
        axis = self._class_axis(student, target)
        if student.ndim < 2 or student.shape[axis] < 2:
            return self._leave_out("agreement", f"outputs of shape {tuple(student.shape)} are no scores of classes")
        classes = student.argmax(axis)
        if teacher is not None and (teacher.ndim != student.ndim or teacher.shape[axis] != student.shape[axis]):
            why = f"the teacher's outputs {tuple(teacher.shape)} are of other classes than {tuple(student.shape)}"
            self._leave_out("agreement", why)
            self._leave_out("teacher_accuracy", why)
            teacher = None
        its = None if teacher is None else teacher.argmax(axis)
        counted = self._count_against_ids("accuracy", classes, student.shape[axis], target, axis, student.shape)
        if teacher is None or its is None:
            return None
        self._count_against_ids("teacher_accuracy", its, teacher.shape[axis], target, axis, teacher.shape)
        if its.shape != classes.shape:
            return self._leave_out(
                "agreement", f"the teacher's outputs {tuple(teacher.shape)} have other positions than the student's"
            )
        # an unlabelled sample is a sample; an unlabelled pixel or token is padding or void
        of_positions = counted if classes.ndim > 1 else None
        return self._count("agreement", Share, classes == its, of_positions)

    def _class_axis(self, student: Tensor, target: Tensor | None) -> int:
        if self.task.class_axis is not None and student.ndim > self.task.class_axis:
            return self.task.class_axis
        return axis_of_classes(student, target)

    def _count_against_ids(
        self, name: str, classes: Tensor, number: int, target: Tensor | None, axis: int, scores: torch.Size
    ) -> Tensor | None:
        """Count predicted classes against a target, and return which positions have a label."""
        if target is None:
            return None
        if target.shape == scores and (target.is_floating_point() or not _holds_id_shape(target, classes)):
            self._count(name, Share, classes == target.argmax(axis))
            return None
        ids = target if target.shape == classes.shape else without_channel(target, classes.shape)
        if ids is None or not holds_ids(target):
            self._leave_out(
                name,
                f"a target of shape {tuple(target.shape)} and type {str(target.dtype).removeprefix('torch.')} holds no "
                f"id for each of the predictions {tuple(classes.shape)}",
            )
            return None
        ids = ids.long()
        mark = self.task.ignore_index
        void = ids == IGNORE_INDEX
        for other in _MARKS[1:] if mark is None else (mark,):
            if mark is not None or not 0 <= other < number:
                void = void | (ids == other)
        strange = out_of_range(ids, number) & ~void
        if name not in self._metrics and strange.any():
            self._leave_out(
                name,
                f"the target holds the id {int(ids[strange][0])}, but there are {number} classes; name the id of what "
                "has no label by task_loss=CrossEntropyLoss(ignore_index=...), or give metrics=... of your own",
            )
        elif name not in self._refused:
            self._count(name, Share, classes == ids, ~void, strange)
        return ~void

    # Labels, values, vectors

    def _count_labels(self, student: Tensor, teacher: Tensor | None, target: Tensor | None) -> None:
        single = student.ndim < 2 or student.shape[1] == 1 or student.numel() == len(student)
        name = "accuracy" if single else "f1"
        predicted = student > 0
        theirs = self._alike(student, teacher, "teacher_" + name)
        given = self._alike(student, target, name)
        counted = None
        if given is not None:
            counted = ~given.isnan()  # a label that is not known
            for mark in {IGNORE_INDEX, IGNORE_INDEX if self.task.ignore_index is None else self.task.ignore_index}:
                counted &= given != mark
            if name not in self._metrics and ((given < 0) & counted).any() and ((given == 0) & counted).any():
                self._leave_out(name, "the target holds negative numbers beside 0, so it is not told what is no label")
        if given is not None and counted is not None and name not in self._refused:
            positive = given > 0.5
            for key, hits in ((name, predicted), ("teacher_" + name, None if theirs is None else theirs > 0)):
                if hits is not None and single:
                    self._count(key, Share, hits == positive, counted)
                elif hits is not None:
                    self._count(key, F1, hits, positive, counted)
        if theirs is not None:
            self._count("agreement", Share, predicted == (theirs > 0), counted)

    def _count_values(self, student: Tensor, teacher: Tensor | None, target: Tensor | None) -> None:
        theirs = self._alike(student, teacher, "mse_to_teacher")
        truth = self._alike(student, target, "mse")
        self._count_pair("mse", "pearson", student, truth)
        self._count_pair("teacher_mse", "teacher_pearson", theirs, truth)
        self._count_pair("mse_to_teacher", "pearson_to_teacher", student, theirs)

    def _count_pair(self, error: str, correlation: str, values: Tensor | None, others: Tensor | None) -> None:
        if values is None or others is None or not values.numel():
            return
        columns = values.shape[1] if values.ndim == 2 else 1
        values, others = (one.detach().float().reshape(-1, columns) for one in (values, others))
        if columns == 1:
            values, others = values.flatten(), others.flatten()
        self._count(error, MeanSquaredError, values.contiguous(), others.contiguous())
        if correlation not in self._metrics:
            self._metrics[correlation] = Correlation(num_outputs=columns)
        self._count(correlation, Correlation, values.contiguous(), others.contiguous())

    def _count_vectors(self, student: Tensor, teacher: Tensor | None, target: Tensor | None) -> None:
        axis = axis_of_classes(student)
        same = target is not None and target.is_floating_point() and target.shape == student.shape
        pairs = (
            ("cosine", student, target if same else None),
            ("teacher_cosine", teacher, target if same else None),
            ("cosine_to_teacher", student, teacher),
        )
        for name, one, other in pairs:
            if one is None or other is None:
                continue
            if one.shape != other.shape:
                self._leave_out(name, f"the vectors are of shapes {tuple(one.shape)} and {tuple(other.shape)}")
            elif one.numel():
                self._count(name, MeanMetric, F.cosine_similarity(one.float(), other.float(), dim=axis))

    def _alike(self, student: Tensor, other: Tensor | None, name: str) -> Tensor | None:
        """Return a tensor in the shape of the student's outputs, if it holds as many values for each sample."""
        if other is None or other.shape == student.shape:
            return other
        if other.numel() == student.numel() and len(other) == len(student) and 1 in (*other.shape, *student.shape):
            return other.reshape(student.shape)
        for one in (name, name if "teacher" in name else "teacher_" + name):
            self._leave_out(one, f"outputs of shape {tuple(student.shape)} do not pair with {tuple(other.shape)}")
        return None

    def _count(self, name: str, kind: Callable[[], Metric], *args: Tensor | None) -> None:
        if name in self._refused:
            return
        metric = self._metrics.get(name)
        if metric is None:
            metric = self._metrics[name] = kind()
        device = next(arg.device for arg in args if arg is not None)
        if metric.device != device:
            metric.to(device)
        metric.update(*args)

    def _leave_out(self, name: str, why: str) -> None:
        if name not in self._metrics:
            self.left_out.setdefault(name, why)
            self._refused.add(name)


def _is_last(student: Tensor, mask: Tensor) -> bool:
    """Whether only the last axis of outputs (B, C, T) is that of a mask (B, T)."""
    return student.shape[1] != mask.shape[1] == student.shape[2]


def _holds_id_shape(target: Tensor, classes: Tensor) -> bool:
    return target.shape == classes.shape or without_channel(target, classes.shape) is not None


def _are_distributions(target: Tensor, axis: int) -> bool:
    """Whether a target holds a distribution over several classes for every position: one-hot rows, soft labels."""
    if target.ndim < 2 or target.shape[axis] < 2 or not target.numel():
        return False
    numbers = target.float()
    return bool((numbers >= 0).all()) and bool(((numbers.sum(axis) - 1).abs() < 1e-3).all())


def _lose(metric: Metric) -> None:
    """Make the value of a metric not a number, whatever it counts later."""
    for name, state in metric.metric_state.items():
        if isinstance(state, Tensor):
            wide = torch.promote_types(state.dtype, torch.float32)
            setattr(metric, name, torch.full_like(state, torch.nan, dtype=wide))


def _is_lost(metric: Metric) -> bool:
    # asked of the states: to compute the value would wait for the other processes
    states = [state for state in metric.metric_state.values() if isinstance(state, Tensor)]
    return bool(states) and all(state.is_floating_point() and bool(state.isnan().all()) for state in states)
