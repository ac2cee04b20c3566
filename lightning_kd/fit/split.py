"""How FSDP2 splits student, losses and teacher over the processes of a ``ModelParallelStrategy``."""

from collections.abc import Callable

from lightning.pytorch import Trainer
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard

from lightning_kd.distributed.sharding import check_not_one_graph, mesh_of
from lightning_kd.distributed.whole_state import is_sharded
from lightning_kd.engine.checks import check_has_weights
from lightning_kd.engine.step import TrainingStep
from lightning_kd.teachers.frozen import FrozenTeacher


def split(
    step: TrainingStep, trainer: Trainer, shard_student: Callable[[nn.Module, DeviceMesh], None] | None = None
) -> None:
    """Split student, losses, the task's loss and teacher, and give a teacher on the meta device its weights.

    Args:
        step: The training step, which knows all three.
        trainer: The Trainer, while it configures the model.
        shard_student: Splits the student over the processes; ``None`` if the module has done so itself.

    Raises:
        ValueError: If student or teacher have no weights after that.
    """
    mesh = mesh_of(trainer)
    assert mesh is not None, "asked under a ModelParallelStrategy only"
    losses, teacher = step.objective.losses, step.teacher
    check_not_one_graph(step.student, "student")
    if teacher is not None and teacher.module is not None:
        check_not_one_graph(teacher.module, "teacher")
    if shard_student is not None:
        shard_student(step.student, mesh)
    check_has_weights(step.student)
    for part in (losses, getattr(step.hooks, "task_loss", None)):  # a task's loss may have weights, as ArcFace has
        if isinstance(part, nn.Module) and any(True for _ in part.parameters()) and not is_sharded(part):
            fully_shard(part, mesh=mesh)
    if isinstance(teacher, FrozenTeacher):
        step.hooks.shard_teacher(teacher.module, mesh)
        teacher.materialize(trainer.strategy.root_device)
