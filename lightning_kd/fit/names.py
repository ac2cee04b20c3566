"""Names that are logged: one under which the user logs is the user's."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning_utilities.core.rank_zero import rank_zero_warn

from lightning_kd.fit.patches import Patches


class Names:
    """Learns which names the user logs, and says once of each of ours that gives way.

    The user's are those that reach ``self.log`` of the module from elsewhere: from the module itself, or from another
    callback. A name is known as soon as it is logged for the first time, so ours are written as late as can be.
    """

    def __init__(self) -> None:
        self.student = ""
        """Name of the student if there are several; whole names have it after their beginning."""
        self._theirs: set[str] = set()
        self._ours: set[str] = set()
        self._told: set[str] = set()
        self._of_batch: set[str] | None = None
        """What the user has logged in a batch of one of several loaders, each of which has names of its own."""
        self._log: Callable[..., None] | None = None

    def watch(self, module: LightningModule, patches: Patches) -> None:
        """Learn what is logged until the patches are undone."""
        self._log = module.log
        patches.replace(module, "log", partial(self._take, module, module.log))

    def start_evaluation(self, *, several: bool) -> None:
        """Take names apart by their loader if there are several."""
        self._of_batch = set() if several else None

    def end_evaluation(self) -> None:
        """Take names as they are, since no batch of a loader is read any more."""
        self._of_batch = None

    def of_loader(self, name: str, loader: int) -> str:
        """Return the whole name of a value of one loader, as Lightning forms it."""
        return name if self._of_batch is None else f"{name}/dataloader_idx_{loader}"

    def end_batch(self, module: LightningModule, loader: int) -> None:
        """Give what the user has logged in a batch the names of its loader."""
        logged = self._of_batch
        for name in logged or ():
            self._claim(module, self.of_loader(name, loader))
        if logged:
            logged.clear()

    def ours(self, module: LightningModule, name: str) -> bool:
        """Whether a whole name is free for a value of ours."""
        self._ours.add(name)
        if name in self._theirs:
            self._tell(module, name)
            return False
        return True

    def agree(self, module: LightningModule, names: Sequence[str]) -> None:
        """Let a name that the user logs in one process be the user's in all.

        A mean over all processes is computed by all of them together. One that had given the name to the user would
        leave the others waiting.

        Args:
            module: The module.
            names: The whole names of what is to be logged, the same in every process.
        """
        trainer = module.trainer
        if trainer.world_size == 1 or not names:
            return
        theirs = torch.tensor([float(name in self._theirs) for name in names], device=module.device)
        theirs = trainer.strategy.reduce(theirs, reduce_op="sum")
        self._theirs |= {name for name, count in zip(names, theirs.tolist(), strict=True) if count}

    def shown(self, name: str) -> str:
        """Return the name under which a value is seen: ``val/accuracy`` of a student ``a`` is ``val/a/accuracy``."""
        if not self.student:
            return name
        beginning, slash, rest = name.partition("/")
        return f"{beginning}/{self.student}/{rest}" if slash else f"{self.student}/{name}"

    def log(self, module: LightningModule, name: str, value: Any, **options: Any) -> None:
        """Log a value of ours."""
        (self._log or module.log)(name, value, **options)

    def _take(self, module: LightningModule, log: Callable[..., None], name: str, *args: Any, **options: Any) -> None:
        if self._of_batch is not None and options.get("add_dataloader_idx", True):
            self._of_batch.add(name)
        elif name not in self._theirs:
            self._claim(module, name)
        log(name, *args, **options)

    def _claim(self, module: LightningModule, name: str) -> None:
        self._theirs.add(name)
        if name in self._ours:
            trainer = module.trainer
            shown = self.shown(name)
            trainer.progress_bar_metrics.pop(shown, None)  # of ours; Lightning puts the user's there again
            trainer.callback_metrics.pop(shown, None)
            self._tell(module, name)

    def _tell(self, module: LightningModule, name: str) -> None:
        plain = name.split("/dataloader_idx_")[0]
        if name in self._told:
            return
        new = plain not in self._told
        self._told |= {name, plain}
        if new:
            rank_zero_warn(
                f"{type(module).__name__} logs {plain!r} itself, so the distillation's value of that name is left out. "
                "To have both, log yours under another name."
            )
