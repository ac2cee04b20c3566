"""What is known of the task in a run: from its loss, from what the first step calls, and from the losses."""

from collections.abc import Callable
from typing import TypeVar

from torch import Tensor

from lightning_kd.capture.heads import OUTPUT
from lightning_kd.engine.objective import Objective
from lightning_kd.metrics.task import LossWatch, Task, first_known

T = TypeVar("T")


class TaskWatch:
    """Gathers what is known of the task, and tells the losses which id marks what has no label.

    Args:
        objective: The losses.
    """

    def __init__(self, objective: Objective) -> None:
        self.objective = objective
        self._told = Task()
        self._seen = Task()
        self.watching = True
        """Whether the next step is watched for the loss functions that it calls."""

    @property
    def task(self) -> Task:
        """What is known now."""
        kinds = {loss.output_kind for loss in self.objective.components if loss.output_kind is not None}
        if not kinds and self._reads_embedding:
            kinds = {"embeddings"}
        of_losses = Task(kinds.pop() if len(kinds) == 1 else None)
        return first_known([self._told, self._seen, of_losses])

    @property
    def _reads_embedding(self) -> bool:
        """Whether losses of samples or embeddings read the network's output, and none reads it as logits."""
        losses = list(self.objective.components)
        if any(loss.reads == "logits" and not loss.student_layers for loss in losses):
            return False
        return any(OUTPUT in loss.student_layers and (loss.reads == "embedding" or loss.relational) for loss in losses)

    @property
    def of_loss(self) -> Task:
        """What the task's own loss tells, and what its calls have shown."""
        return first_known([self._told, self._seen])

    def tell(self, task: Task) -> None:
        """Take what the task's own loss tells."""
        self._told = task
        self.watching = task.kind is None
        self._tell_losses()

    def during(self, step: Callable[[], T], logits: Callable[[T], Tensor | None]) -> T:
        """Run a step, and watch which loss functions it calls unless that is known.

        Args:
            step: What calls the task's loss.
            logits: Returns the student's logits, given what the step returned.
        """
        if not self.watching:
            return step()
        with LossWatch() as watch:
            result = step()
        scores = logits(result)
        if watch.calls or watch.compares(scores):
            self.watching = False
            self._seen = watch.task(scores)
            self._tell_losses()
        return result

    def _tell_losses(self) -> None:
        mark = self.task.ignore_index
        if mark is not None:
            for loss in self.objective.components:
                loss.task_ignore_index = mark
