"""The distillation that a Trainer runs, through whichever door."""

from lightning.pytorch import LightningModule, Trainer

from lightning_kd.fit.run import DistillationRun
from lightning_kd.fit.students.several import SeveralStudents


def find_runs(trainer: Trainer, pl_module: LightningModule) -> dict[str, DistillationRun]:
    """Return the distillation runs of a Trainer by the student's name, which is empty where there is one student.

    The module holds its run as ``run``, the callback as ``_run``. Neither is imported here, since both import ``fit``.
    """
    if isinstance(pl_module, SeveralStudents):
        return {name: member.run for name, member in pl_module.members.items()}
    for door in (pl_module, *trainer.callbacks):  # type: ignore[attr-defined]
        for name in ("run", "_run"):
            run = vars(door).get(name)
            if isinstance(run, DistillationRun):
                return {"": run}
    return {}


def find_run(trainer: Trainer, pl_module: LightningModule) -> DistillationRun | None:
    """Return the distillation run of a Trainer, the first of several, ``None`` if there is none."""
    return next(iter(find_runs(trainer, pl_module).values()), None)
