"""Tells the training steps that the Trainer makes from calls of ``training_step`` by anybody else."""

from typing import Any

from lightning.pytorch import Trainer

from lightning_kd.fit.patches import Patches


class TrainerSteps:
    """Knows whether a training step that the Trainer makes is going on.

    A ``validation_step`` may call ``self.training_step``, and so may a callback. Such a call is no step of the
    training: nothing is counted or remembered of it.
    """

    def __init__(self) -> None:
        self.going_on = True
        """Whether what is called now is a step of the training; without a Trainer, every call is."""

    def join(self, trainer: Trainer, patches: Patches) -> None:
        """Watch the strategy, through which the Trainer makes its steps.

        Args:
            trainer: The Trainer.
            patches: Where the replacement of a method of the strategy is remembered.
        """
        step = trainer.strategy.training_step

        def training_step(*args: Any, **kwargs: Any) -> Any:
            self.going_on = True
            try:
                return step(*args, **kwargs)
            finally:
                self.going_on = False

        self.going_on = False
        patches.replace(trainer.strategy, "training_step", training_step)

    def leave(self) -> None:
        """Take every call for a step of the training again, such as those of a loop of the user's own."""
        self.going_on = True
