"""The first stage of a method that trains something before the student learns its task."""

from dataclasses import dataclass

from lightning_kd.schedules import Moment, Unit, check_constants, check_unit, check_whole


@dataclass
class Stage:
    """The first stage of a loss: what it trains before the main training. The engine runs the stage.

    During the stage only the stage's own loss trains, at a constant learning rate. The task's loss and all other losses
    wait. When the stage is over, the optimizer and the learning rate schedule begin anew.

    Args:
        length: Number of epochs or steps, >= 0; 0 leaves the stage out, ``None`` is a tenth of the run.
        unit: Whether to count epochs or optimizer steps.
        runs_student: Whether the student takes part; if not, it is not called, and nothing of it changes.
        then_stops: Whether the loss has no part in the main training.
        lr: Learning rate of the stage, > 0; by default the optimizer's.

    Raises:
        ValueError: If a number is out of its range.

    Example:
        >>> stage = Stage(2)
        >>> [stage.includes(Moment(epoch=epoch)) for epoch in range(3)]
        [True, True, False]
    """

    length: int | None = None
    unit: Unit = "epoch"
    runs_student: bool = True
    then_stops: bool = False
    lr: float | None = None

    def __post_init__(self) -> None:
        if self.length is not None:
            check_whole("Stage", "length", self.length, 0)
        check_unit("Stage", self.unit)
        if self.lr is not None:
            check_constants("Stage", lr=self.lr)
        if self.lr is not None and not 0.0 < self.lr < float("inf"):
            raise ValueError(f"Stage: expected lr > 0, got {self.lr}.")

    def includes(self, moment: Moment) -> bool:
        """Whether the stage is still going on; a length that is not resolved yet counts as over."""
        return moment.count(self.unit) < (self.length or 0)
