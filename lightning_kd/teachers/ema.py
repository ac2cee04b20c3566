"""The mean teacher: an exponential moving average of the student's own weights."""

from typing import Any, final

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from lightning_kd.distributed.whole_state import load_whole, placed_like, whole, whole_state
from lightning_kd.teachers.frozen import FrozenTeacher
from lightning_kd.teachers.source import TeacherSource, same_everywhere


@final
class EMATeacher(TeacherSource):
    r"""Teach the student by the moving average of its own weights (mean teacher).

    After each optimizer step :math:`t`, counted from 1,

    .. math::
        \theta_T \leftarrow d_t \, \theta_T + (1 - d_t) \, \theta_S, \qquad
        d_t = \min\Big(d, \; 1 - \frac{1}{t + 1}\Big)

    where the second term, the warm-up, makes the early average follow the student instead of its random start.
    BatchNorm statistics are copied. The average is kept in float32 if the student trains in a 16-bit format, is in the
    checkpoint, and is equal on all processes. Follows the authors' code.

    Best for improving calibration and for learning from unlabelled data. Key parameter: the decay. It costs one more
    forward pass and copy of the network, and no second training.

    Args:
        decay: Share of the old average that is kept in each step, 0..1. The paper uses 0.99, later 0.999.
        warmup: Whether the average begins as the plain mean over the steps.

    Raises:
        ValueError: If ``decay`` is not in [0, 1).

    Example:
        >>> from lightning_kd import DistillationModule
        >>> from lightning_kd.losses import KDLoss
        >>> module = DistillationModule(
        ...     torch.nn.Linear(4, 3), losses=[KDLoss()], task_loss=torch.nn.CrossEntropyLoss()
        ... )
        >>> batches = torch.utils.data.DataLoader([(torch.randn(8, 4), torch.randint(0, 3, (8,)))], batch_size=None)
        >>> mean_teacher = EMATeacher(decay=0.99)
        >>> trainer = Trainer(max_epochs=2, callbacks=[mean_teacher], logger=False, accelerator="cpu",
        ...                   enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
        >>> trainer.fit(module, batches, batches)
        >>> mean_teacher.steps
        2

    Reference:
        Tarvainen & Valpola, "Mean teachers are better role models", NeurIPS 2017, arXiv:1703.01780.
    """

    shardable = True

    def __init__(self, decay: float = 0.999, warmup: bool = True) -> None:
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"EMATeacher: expected decay in [0, 1), got {decay}.")
        self.decay = decay
        self.warmup = warmup
        self.steps = 0
        """Optimizer steps that are in the average."""
        self._seen: int | None = None
        self._wide: dict[str, Tensor] = {}

    def provide(self, student: nn.Module) -> FrozenTeacher:
        """Return the average of a student; that of another one begins at its first step."""
        if self.student is not student:
            self.steps, self._seen, self._wide = 0, None, {}
        return super().provide(student)

    def begin(self, losses: nn.Module, trainer: Trainer) -> None:
        """Count the Trainer's steps anew; the average of an earlier fit of the same student goes on."""
        self._seen = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin with one average for all processes, and make up for a step that was saved before it was in it."""
        same_everywhere(self.pair()[1].module)  # it was copied from the weights that each process has drawn
        if self._seen is None:
            self._seen = trainer.global_step
        self._follow(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Take the student's new weights into the average, if there was an optimizer step."""
        self._follow(trainer)

    def _follow(self, trainer: Trainer) -> None:
        if self._seen is not None and trainer.global_step > self._seen:
            self._seen = trainer.global_step
            self.steps += 1
            self.update()

    @torch.no_grad()
    def update(self) -> None:
        """Take the student's weights into the average."""
        student, held = self.pair()
        teacher = held.module
        decay = min(self.decay, 1.0 - 1.0 / (self.steps + 1)) if self.warmup else self.decay
        weights, statistics = dict(student.named_parameters()), dict(student.named_buffers())
        for name, average in teacher.named_parameters():  # the student may hold the losses besides
            weight = weights[name]
            if average.dtype in (torch.float16, torch.bfloat16):
                wide = self._wide.setdefault(name, average.float())
                average.copy_(wide.lerp_(weight.float(), 1.0 - decay))
            else:
                average.lerp_(weight.to(average.dtype), 1.0 - decay)
        for name, statistic in teacher.named_buffers():
            statistic.copy_(statistics[name])
        same_everywhere(teacher, buffers_only=True)

    def state_dict(self) -> dict[str, Any]:
        """Return the average and the number of steps in it."""
        teacher = {} if self.teacher is None else whole_state(self.teacher.module)
        wide = {name: whole(value) for name, value in self._wide.items()}
        return {"steps": self.steps, "seen": self._seen, "teacher": teacher, "wide": wide}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up a saved average."""
        _, teacher = self.pair()
        load_whole(teacher.module, state_dict["teacher"])
        self.steps, self._seen = state_dict["steps"], state_dict["seen"]
        weights = dict(teacher.module.named_parameters())
        self._wide = {name: placed_like(value, weights[name]) for name, value in state_dict["wide"].items()}
