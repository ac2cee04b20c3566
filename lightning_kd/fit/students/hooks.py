"""The hooks of several students: each moment of a fit goes to the run of each."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from torch.optim import Optimizer

from lightning_kd.fit.hooks import ModuleHooks

_Hook = Callable[..., None]


class OwnGroup:
    """The part of an optimizer that one student has.

    Args:
        optimizer: The optimizer of all students.
        number: Number of the student's group.
    """

    def __init__(self, optimizer: Optimizer, number: int) -> None:
        self.param_groups = optimizer.param_groups[number : number + 1]


def _to_each(name: str) -> _Hook:
    def hook(self: "SeveralHooks", trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any) -> None:
        for hooks, member in self.pairs():
            getattr(hooks, name)(trainer, member, *args, **kwargs)

    hook.__doc__ = f"Hand ``{name}`` on to each student."
    return hook


class SeveralHooks(Callback):
    """Stands among the Trainer's callbacks for the hooks of each student.

    Args:
        hooks: The hooks of each student by its name.
        members: The students' modules by name.
        before_fit: Called as a fit starts, before the runs are.
    """

    def __init__(
        self, hooks: Mapping[str, ModuleHooks], members: Mapping[str, Any], before_fit: Callable[[], None]
    ) -> None:
        self._hooks = hooks
        self.members = members
        self._before_fit = before_fit

    def pairs(self) -> Iterator[tuple[ModuleHooks, Any]]:
        """Yield the hooks of each student with its module."""
        yield from ((self._hooks[name], member) for name, member in self.members.items())

    def join(self, trainer: Trainer) -> None:
        """Stand where the hooks of a single student would, in the place of what an earlier fit has left there."""
        callbacks = self._without_these(trainer)
        place = next((i for i, callback in enumerate(callbacks) if isinstance(callback, Checkpoint)), len(callbacks))
        # a new list: the Trainer may be going through the old one
        trainer.callbacks = [*callbacks[:place], self, *callbacks[place:]]  # type: ignore[attr-defined]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take up a learning rate that a finder has set, and begin each student's run."""
        self._before_fit()
        for hooks, member in self.pairs():
            hooks.on_fit_start(trainer, member)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Show each student its own part of the optimizer."""
        for number, (hooks, member) in enumerate(self.pairs()):
            hooks.on_before_optimizer_step(trainer, member, cast(Optimizer, OwnGroup(optimizer, number)))

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave students, teacher and Trainer as they were."""
        self._leave(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave students, teacher and Trainer as they were."""
        self._leave(trainer)

    on_train_start = _to_each("on_train_start")
    on_train_epoch_start = _to_each("on_train_epoch_start")
    on_train_batch_start = _to_each("on_train_batch_start")
    on_train_epoch_end = _to_each("on_train_epoch_end")
    on_train_end = _to_each("on_train_end")
    on_validation_epoch_start = _to_each("on_validation_epoch_start")
    on_validation_epoch_end = _to_each("on_validation_epoch_end")
    on_test_epoch_start = _to_each("on_test_epoch_start")
    on_test_epoch_end = _to_each("on_test_epoch_end")

    def _leave(self, trainer: Trainer) -> None:
        for _, member in self.pairs():
            member.run.leave()
        trainer.callbacks = self._without_these(trainer)  # type: ignore[attr-defined]

    def _without_these(self, trainer: Trainer) -> list[Callback]:
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        return [c for c in callbacks if not (isinstance(c, SeveralHooks) and c.members.keys() == self.members.keys())]
