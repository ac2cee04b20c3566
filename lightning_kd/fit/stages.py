"""How long the stages before the main training are, where their losses leave it open."""

import functools
from collections.abc import Iterable
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn

from lightning_kd.engine.objective import Objective
from lightning_kd.fit.clock import Clock
from lightning_kd.fit.patches import Patches
from lightning_kd.losses.base import DistillationLoss
from lightning_kd.losses.stage import Stage
from lightning_kd.schedules import Unit


def settle_stages(losses: Iterable[tuple[str, DistillationLoss]], trainer: Trainer) -> None:
    """Make the length of a stage that names none a tenth of the run: of its steps if they are limited, else epochs.

    What cannot work as it seems to be meant is told: a stage as long as the run, a weight that a stage leaves out.

    Args:
        losses: The losses, with their names; those without a stage are passed over.
        trainer: The Trainer that will run them.

    Raises:
        MisconfigurationException: If the run has no end.
    """
    totals: dict[Unit, int] = {"step": trainer.max_steps, "epoch": trainer.max_epochs or -1}
    for name, loss in losses:
        stage = loss.stage
        if stage is None:
            continue
        if stage.length is None:
            _take_a_tenth(stage, totals)
        if 0 < totals[stage.unit] <= (stage.length or 0) and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            rank_zero_warn(
                f"The first stage takes {stage.length} {stage.unit}(s), which is the whole run, so the main training "
                "does not begin; lengthen the run, or shorten stage_length."
            )
        if stage.then_stops and stage.length and loss.weight != 1.0:
            rank_zero_warn(
                f"The weight of {name!r} has no effect: it trains alone in its first stage, and has no part in the "
                "main training; leave the weight out, or give stage_length=0 to add the loss to the task."
            )


def check_trains_on(objective: Objective, trainer: Trainer) -> None:
    """Raise a ``ValueError`` if nothing is left to train when the first stages end.

    Args:
        objective: The losses of a run that has no task loss, with the lengths of their stages settled.
        trainer: The Trainer that will run them.
    """
    if objective.main(True).components:
        return
    totals: dict[Unit, int] = {"step": trainer.max_steps, "epoch": trainer.max_epochs or -1}
    for name, loss in objective.leaves:
        stage = loss.stage
        if stage is not None and stage.length and not 0 < totals[stage.unit] <= stage.length:
            raise ValueError(
                f"The first stage of {name!r} ends after {stage.length} {stage.unit}(s), and there is nothing to train "
                "with afterwards. Give task_loss, add a loss without a first stage, or stage_length=0, which adds this "
                "loss to the main training."
            )


def _take_a_tenth(stage: Stage, totals: dict[Unit, int]) -> None:
    unit: Unit = "step" if totals["step"] > 0 else "epoch"
    if totals[unit] < 1:
        raise MisconfigurationException(
            "The length of a loss's first stage is by default a tenth of the run, but the run has no end; give "
            "stage_length, or the Trainer max_epochs."
        )
    stage.unit = unit
    stage.length = -(-totals[unit] // 10)
    rank_zero_info(f"The first stage takes {stage.length} {stage.unit}(s).")


def wait_in_stages(module: LightningModule, clock: Clock, patches: Patches) -> None:
    """Keep a module's schedules of the learning rate where they are, as long as a stage lasts.

    Args:
        module: The user's module.
        clock: Tells the stages.
        patches: Where the replacement of the module's method is remembered.
    """
    move_on = module.lr_scheduler_step

    @functools.wraps(move_on)
    def lr_scheduler_step(*args: Any, **kwargs: Any) -> None:
        if not clock.was_in_stage(module):
            move_on(*args, **kwargs)

    patches.replace(module, "lr_scheduler_step", lr_scheduler_step)
