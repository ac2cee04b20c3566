"""What is kept of an evaluation: what both networks said of the first rows, and the images where they differ most."""

from typing import Any

import torch
from torch import Tensor

from lightning_kd.capture.call import Call
from lightning_kd.fit.evaluation import Compared
from lightning_kd.metrics import Comparison
from lightning_kd.metrics.task import Task

_SCORES = 4_000_000
"""How many class scores of a network are kept at most."""
_SAMPLES, _BYTES = 256, 64 * 2**20
"""How many samples, and bytes, of validation batches are kept for the measurements at the end."""


class Kept:
    """Answers and inputs of the first rows of an evaluation.

    Args:
        rows: How many rows are kept at most.
        pictures: How many images are kept at most: those of the rows where the networks disagree most.
    """

    def __init__(self, rows: int, pictures: int) -> None:
        self.rows, self.pictures = rows, pictures
        self.count = self.seen = 0
        self.calls: list[tuple[Call, Any]] = []
        """What both networks were called with in the first batches."""
        self.why = ""
        """Why outputs are not kept."""
        self._columns: dict[str, list[Tensor]] = {}
        self._pictures: list[tuple[float, int, Tensor]] = []
        self._samples = self._bytes = 0

    def add(self, compared: Compared, task: Task) -> None:
        """Keep a batch, as far as there is room.

        Args:
            compared: The batch.
            task: What is known of the task: of labels, each by itself, a row may look like that of one class.
        """
        self._keep_call(compared)
        logits, teacher, target = compared.logits, compared.teacher_logits, compared.target
        kind = (
            None if logits is None else Comparison(task).kind_of(logits, target if isinstance(target, Tensor) else None)
        )
        if logits is None or logits.ndim != 2 or logits.shape[1] < 2 or kind is None or kind[0] != "classes":
            self.why = "the outputs are no class scores of samples"
            return
        if teacher is not None and teacher.shape != logits.shape:
            self.why = "the teacher's classes are not the student's"
            return
        self.seen += len(logits)
        room = min(self.rows, _SCORES // logits.shape[1]) - self.count
        if room <= 0:
            return
        ours = logits[:room].detach().float().cpu()
        columns = {"student_logits": ours}
        if teacher is not None:
            columns["teacher_logits"] = teacher[:room].detach().float().cpu()
        if isinstance(target, Tensor):
            ids = target.argmax(1) if target.shape == logits.shape else target.reshape(len(logits), -1)[:, 0]
            columns["target"] = ids[:room].detach().long().cpu()
        for name, value in columns.items():
            self._columns.setdefault(name, []).append(value)
        if "teacher_logits" in columns:
            self._keep_pictures(compared.call, ours, columns["teacher_logits"])
        self.count += len(ours)

    def _keep_call(self, compared: Compared) -> None:
        if self._samples >= _SAMPLES or self._bytes >= _BYTES:
            return
        call, lesson = compared.call, compared.lesson
        tensors = [value for value in (*call.args, *call.kwargs.values()) if isinstance(value, Tensor)]
        self._samples += call.rows()
        self._bytes += sum(value.numel() * value.element_size() for value in tensors)
        asked = Call(args=lesson.args, kwargs=lesson.kwargs) if isinstance(lesson, Call) else None
        self.calls.append((Call(args=call.args, kwargs=call.kwargs), asked))

    def _keep_pictures(self, call: Call, ours: Tensor, theirs: Tensor) -> None:
        """Keep the images of the rows whose distributions over the classes are farthest apart."""
        given = next((value for value in (*call.args, *call.kwargs.values()) if isinstance(value, Tensor)), None)
        if given is None or given.ndim != 4 or given.shape[1] not in (1, 3):
            return
        apart = distances(ours, theirs)
        for at in apart.topk(min(self.pictures, len(apart))).indices.tolist():
            self._pictures.append((float(apart[at]), self.count + at, given[at].detach().float().cpu().clone()))
        self._pictures = sorted(self._pictures, key=lambda one: (-one[0], one[1]))[: self.pictures]

    def outputs(self) -> dict[str, Tensor]:
        """Return what was kept, as tensors."""
        if self.why:
            return {}
        found = {name: torch.cat(values) for name, values in self._columns.items()}
        if self._pictures and len({picture.shape for _, _, picture in self._pictures}) == 1:
            found["pictures"] = torch.stack([as_bytes(picture) for _, _, picture in self._pictures])
            found["picture_rows"] = torch.tensor([row for _, row, _ in self._pictures])
        return found


def _are_classes(logits: Tensor, target: Any, task: Task) -> bool:
    """Whether outputs are the class scores of samples, not of pixels or tokens."""
    if logits.ndim != 2 or logits.shape[1] < 2:
        return False
    return Comparison(task).kind_of(logits, target if isinstance(target, Tensor) else None)[0] == "classes"


def distances(student: Tensor, teacher: Tensor) -> Tensor:
    """Return how far apart the distributions of two networks are on each row: total variation, 0..1.

    Example:
        >>> distances(torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.75, 0.25]]).log())
        tensor([0.2500])
    """
    return (student.softmax(1) - teacher.softmax(1)).abs().sum(1) / 2


def as_bytes(picture: Tensor) -> Tensor:
    """Return an image (C, H, W) with its smallest value as 0 and its largest as 255."""
    low, high = picture.min(), picture.max()
    return ((picture - low) / (high - low).clamp_min(1e-12) * 255).round().to(torch.uint8)
