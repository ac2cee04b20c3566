"""How long the stages before the main training are, where their losses leave it open."""

from collections.abc import Iterable

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning_utilities.core.rank_zero import rank_zero_info

from lightning_kd.losses.stage import Stage


def settle_stages(stages: Iterable[Stage], trainer: Trainer) -> None:
    """Make the length of a stage that names none a tenth of the run: of its steps if they are limited, else epochs.

    Args:
        stages: The stages.
        trainer: The Trainer that will run them.

    Raises:
        MisconfigurationException: If the run has no end.
    """
    by_steps = trainer.max_steps > 0
    total = trainer.max_steps if by_steps else trainer.max_epochs or -1
    for stage in stages:
        if stage.length is not None:
            continue
        if total < 1:
            raise MisconfigurationException(
                "The length of a loss's first stage is by default a tenth of the run, but the run has no end; give "
                "stage_length, or the Trainer max_epochs."
            )
        stage.unit = "step" if by_steps else "epoch"
        stage.length = -(-total // 10)
        rank_zero_info(f"The first stage takes {stage.length} {stage.unit}(s).")
