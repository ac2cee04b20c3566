"""Whether a network's output is its embedding, so that losses of the embedding read the output itself.

Where a classifier stands behind it, the embedding is what the classifier reads. Sentence encoders and networks of
metric learning return the embedding. What is known decides, in this order:

1. a loss that takes the outputs for scores or values, or a task of classes or labels: the features before the output;
2. a task of embeddings (``TripletMarginLoss``, ``CosineEmbeddingLoss``): the output;
3. outputs of length one: the output;
4. an ``EmbeddingLoss``, where the task's loss does not say more: the output;
5. nothing else that trains the student's last layer: the output;
6. else the features before the output, as in the papers.

Where the task is not known at set-up, the first step that shows it is compared with what was taken.
"""

import torch
from torch import Tensor

from lightning_kd.capture.heads import OUTPUT
from lightning_kd.engine.look_at_outputs import KnownTask
from lightning_kd.engine.objective import Objective
from lightning_kd.engine.step import TrainingStep
from lightning_kd.metrics.task import Task

_SCORES = ("classes", "multilabel")


class Embeddings:
    """Chooses for losses of the embedding that name no layers whether they read the network's output.

    Args:
        step: The training step.
        task: Who knows what the task's own loss tells.
    """

    def __init__(self, step: TrainingStep, task: KnownTask) -> None:
        self.step = step
        self.task = task
        self.taken: dict[str, bool] = {}
        """The parts that were settled before the task was known, and whether each reads the output."""

    def that_are_outputs(self, student: Tensor | None) -> dict[str, str]:
        """Name the output as the layer of those losses that read it; return for each what it reads, in words.

        Args:
            student: The student's output on the first samples.
        """
        objective, kind = self.step.objective, self.task.of_loss.kind
        waiting = {name: loss for name, loss in objective.leaves if loss.needs_layers and loss.reads == "embedding"}
        why = why_output(objective, self.task.of_loss, student, without_task=self._without_task)
        self.taken = dict.fromkeys(waiting, why is not None) if kind is None else {}
        if why is None:
            return {}
        for loss in waiting.values():
            loss.name_layers(OUTPUT, OUTPUT if loss.pairs_layers else None)
        of = {name: "student and teacher" if loss.pairs_layers else "the student" for name, loss in waiting.items()}
        return {
            name: f"the output of {side} as the embedding, since {why}; name layers to read others"
            for name, side in of.items()
        }

    def check(self) -> None:
        """Compare what was taken for the embedding with what the first steps show of the task.

        Raises:
            ValueError: If the task's loss takes the output for something else; names the part and the remedy.
        """
        kind = self.task.of_loss.kind
        if kind is None:
            return
        taken, self.taken = self.taken, {}
        for name, reads_output in taken.items():
            if kind == "embeddings" and not reads_output:
                raise ValueError(
                    f"The task's loss takes the student's output for an embedding, but part {name!r} reads the "
                    "features before it. Say what to read: student='<output>', teacher='<output>', or names of layers."
                )
            if kind in _SCORES and reads_output:
                raise ValueError(
                    f"The task's loss takes the student's output for scores, but part {name!r} reads it as an "
                    "embedding. Name the layers that return the embedding, student=..., teacher=...; or, if the output "
                    "is the embedding and a loss of your own on it takes class ids, student='<output>', "
                    "teacher='<output>'."
                )

    @property
    def _without_task(self) -> bool:
        """Whether the losses alone train the student: the module door without a task, and its own training step."""
        hooks = self.step.hooks
        own = getattr(type(hooks), "training_step", None)
        ours = getattr(own, "__module__", "").partition(".")[0] == __name__.partition(".")[0]
        return self.step.calls is None and ours and getattr(hooks, "task_loss", None) is None


def why_output(objective: Objective, task: Task, student: Tensor | None, *, without_task: bool) -> str | None:
    """Return why the output is the embedding, ``None`` if the features before it are.

    Args:
        objective: The losses.
        task: What the task's own loss tells.
        student: The student's output on the first samples.
        without_task: Whether the losses alone train the student.
    """
    readers = [loss for loss in objective.components if loss.reads == "logits" and not loss.student_layers]
    if readers or task.kind in _SCORES:
        return None
    if task.kind == "embeddings":
        return "the task's loss takes it for one"
    if task.kind is not None:
        return None
    if student is not None and _has_length_one(student):
        return "its rows have the length 1"
    if any(loss.output_kind == "embeddings" for loss in objective.components):
        return "an EmbeddingLoss is among the losses"
    return "nothing else trains the last layer" if without_task else None


def _has_length_one(rows: Tensor) -> bool:
    if rows.ndim != 2 or rows.shape[1] < 2 or not rows.numel() or rows.is_meta or not rows.is_floating_point():
        return False
    tolerance = 2e-2 if rows.dtype in (torch.float16, torch.bfloat16) else 1e-3
    return bool(((rows.detach().double().norm(dim=1) - 1).abs() < tolerance).all())
