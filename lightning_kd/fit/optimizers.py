"""How optimizers are made, what they were given, and how they and their schedules stood when a fit began."""

import copy
from collections.abc import Iterator
from typing import Any, cast

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LRSchedulerCallable
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.optim import Optimizer


def optimized_parameters(optimizer: Optimizer) -> Iterator[Tensor]:
    """Yield the parameters that an optimizer was given, also where the strategy has replaced them.

    DeepSpeed 0.19 puts flat copies into ``param_groups``. Its ZeRO stages 1 and 2 keep what the user gave in
    ``bit16_groups``, its stage 3 in ``fp16_groups``, and its optimizer for bfloat16 in ``bf16_groups``.
    """
    for group in optimizer.param_groups:
        yield from group["params"]
    for name in ("bit16_groups", "fp16_groups", "bf16_groups"):
        for parameters in getattr(optimizer, name, []):
            yield from parameters


def configure(
    optimizer: Optimizer, make_lr_scheduler: LRSchedulerCallable | None, interval: str, lr: float | None
) -> OptimizerLRScheduler:
    """Return for ``configure_optimizers`` an optimizer and its scheduler.

    Args:
        optimizer: The optimizer.
        make_lr_scheduler: Makes the scheduler from the optimizer, if there shall be one.
        interval: Whether the scheduler steps every epoch or every optimizer step.
        lr: Learning rate in place of the optimizer's own.

    Raises:
        MisconfigurationException: If the scheduler sets other learning rates.
    """
    if lr is not None:
        optimizer.defaults["lr"] = lr
        for group in optimizer.param_groups:
            group["lr"] = lr
    if make_lr_scheduler is None:
        return optimizer
    scheduler = make_lr_scheduler(optimizer)
    if lr is not None and any(group.get("initial_lr", lr) != lr for group in optimizer.param_groups):
        raise MisconfigurationException(
            f"lr={lr:g} has no effect, since {type(scheduler).__name__} sets the learning rates itself; give "
            "the scheduler the rate (such as max_lr), and leave out lr or the learning rate finder."
        )
    config = {"scheduler": scheduler, "interval": interval}
    if hasattr(scheduler, "monitor"):
        config["monitor"] = scheduler.monitor
    return cast(OptimizerLRScheduler, {"optimizer": optimizer, "lr_scheduler": config})


class OptimizerSnapshot:
    """Remembers the options of all optimizers and the state of all learning rate schedules.

    Args:
        trainer: The Trainer, before its first step and before a checkpoint's optimizer state is loaded.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._groups = [[_options(group) for group in optimizer.param_groups] for optimizer in trainer.optimizers]
        self._schedules = [copy.deepcopy(config.scheduler.state_dict()) for config in trainer.lr_scheduler_configs]

    def restore(self, trainer: Trainer) -> None:
        """Forget momenta and averages, and set learning rates and schedules to where they began."""
        for optimizer, groups in zip(trainer.optimizers, self._groups, strict=True):
            optimizer.state.clear()
            for group, options in zip(optimizer.param_groups, groups, strict=True):
                group.update(copy.deepcopy(options))
        for config, state in zip(trainer.lr_scheduler_configs, self._schedules, strict=True):
            config.scheduler.load_state_dict(copy.deepcopy(state))

    @staticmethod
    def set_lr(trainer: Trainer, lr: float) -> None:
        """Set the learning rate of every parameter."""
        for optimizer in trainer.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = lr


def _options(group: dict[str, Any]) -> dict[str, Any]:
    return copy.deepcopy({name: value for name, value in group.items() if name != "params"})
