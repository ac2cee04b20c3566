"""The distillation that a Trainer runs, through whichever door."""

from lightning.pytorch import LightningModule, Trainer

from lightning_kd.fit.run import DistillationRun


def find_run(trainer: Trainer, pl_module: LightningModule) -> DistillationRun | None:
    """Return the distillation run of a Trainer, ``None`` if there is none.

    The module holds its run as ``run``, the callback as ``_run``. Neither is imported here, since both import ``fit``.
    """
    for door in (pl_module, *trainer.callbacks):  # type: ignore[attr-defined]
        for name in ("run", "_run"):
            run = vars(door).get(name)
            if isinstance(run, DistillationRun):
                return run
    return None
