"""What a run writes: a line every ``log_every_n_steps``, and the means of an epoch for callbacks."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.trainer.states import TrainerFn
from lightning_utilities.core.rank_zero import rank_zero_warn

from lightning_kd.engine.objective import Objective
from lightning_kd.fit.names import Names
from lightning_kd.fit.part_log import PartLog

if TYPE_CHECKING:
    from lightning_kd.engine.step import Terms


class Lines:
    """Collects the terms of each step, and hands their means to loggers, progress bar and callbacks.

    Args:
        objective: The losses, which know their weights.
        names: Whose the names are.
    """

    def __init__(self, objective: Objective, names: Names) -> None:
        self.objective = objective
        self.names = names
        self.log = PartLog()
        self._told_unequal = False
        self.steps = 0
        """Optimizer steps done; the Trainer's own count is slow to ask for."""
        self.readers: list[Callable[[Terms, int], None]] = []
        """Who else gets the terms of each step before its backward pass, with its number; they change nothing."""

    def begin(self) -> None:
        """Forget what an earlier fit, or one that was broken off, has collected."""
        self.log = PartLog()

    def add(self, terms: "Terms", rows: int = 1, counts: Mapping[str, torch.Tensor] | None = None) -> None:
        """Collect the terms of a step, which count as often as it has rows, or as a part counts by its own measure.

        Raises:
            FloatingPointError: If the loss is not finite; names the parts and the step.
        """
        factors = self.objective.weights() if self.objective.changes_over_time else None
        self.log.add(terms.total, terms.parts, self.steps, rows, counts, factors)
        for read in tuple(self.readers):  # one that has seen enough takes itself away
            read(terms, self.steps)

    def before_optimizer_step(self, module: LightningModule) -> None:
        """Count the step, and write a line if one is due."""
        self.steps = module.global_step + 1
        every = module.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if every and self.steps % every == 0:
            self._write_line(module)

    def _write_line(self, module: LightningModule) -> None:
        """Write the means since the last line to the loggers, and show the loss.

        Loggers, progress bar and callbacks get the line directly: once a value is in the Trainer's own collection,
        Lightning 2.6 goes through that collection in every step.
        """
        means = self.log.flush()
        if not means or module.trainer.barebones:
            return
        line = self._free(module, means)
        loss = self.names.shown("train/loss")
        if loss in line:
            module.trainer.progress_bar_metrics[loss] = line[loss]
            module.trainer.callback_metrics[loss] = torch.tensor(line[loss])
        _write(module, line, module.global_step)

    def epoch_end(self, module: LightningModule) -> None:
        """Write the steps since the last line, and give callbacks the means of the epoch, of all processes.

        The Trainer's own collection would mix them with what the module logs under the same name as the epoch ends.
        """
        left = self.log.flush()
        means = self._epoch_means(module)
        if not means or module.trainer.barebones:
            return
        if left:
            _write(module, self._free(module, left), module.global_step - 1)
        values = self._show(module, means)
        loss = self.names.shown("train/loss")
        if loss in values:
            module.trainer.progress_bar_metrics[loss] = values[loss].item()

    def show_epoch_so_far(self, module: LightningModule) -> None:
        """Give callbacks the means of the epoch before a validation ends.

        A checkpoint or a stop that watches a training loss is decided when the validation ends, which is before the
        epoch does.
        """
        trainer = module.trainer
        if trainer.state.fn != TrainerFn.FITTING or trainer.barebones:
            return
        self._show(module, self._epoch_means(module))

    def _show(self, module: LightningModule, means: Mapping[str, float]) -> dict[str, torch.Tensor]:
        """Give callbacks the means whose names are free, and return them."""
        free = self._free(module, means)
        values = dict(zip(free, torch.tensor(list(free.values()), device=module.device), strict=True))
        module.trainer.callback_metrics.update(values)
        return values

    def _free(self, module: LightningModule, means: Mapping[str, float]) -> dict[str, float]:
        """Return the means by whole name, without those under which the user logs."""
        named = {f"train/{name}": value for name, value in means.items()}
        return {self.names.shown(name): value for name, value in named.items() if self.names.ours(module, name)}

    def _epoch_means(self, module: LightningModule) -> dict[str, float]:
        """Return the means of the epoch so far, over what the steps of all processes count.

        Where parts are means over labels or tokens, and others over rows, no count is that of the whole loss. Its mean
        is then the sum of the weighted means of its parts, which is the same for any number of processes.
        """
        means, weights, uneven = self.log.epoch_means, self.log.epoch_weights, self.log.epoch_is_uneven
        parts = self._weighted(means)
        trainer = module.trainer
        if not means or trainer.barebones:
            return means
        counts = dict(zip(means, weights, strict=True))
        if trainer.world_size > 1:
            sums = [value * counts[name] for name, value in (*means.items(), *parts.items())]
            mine = [*sums, *weights, float(uneven), weights[0] ** 2]
            added = torch.tensor(mine, dtype=torch.float64, device=module.device)
            *values, some_uneven, squares = trainer.strategy.reduce(added, reduce_op="sum").double().tolist()
            first = len(means) + len(parts)
            counts = {name: value if value > 0 else 1.0 for name, value in zip(means, values[first:], strict=True)}
            means = {name: value / counts[name] for name, value in zip(means, values, strict=False)}
            parts = {n: value / counts[n] for n, value in zip(parts, values[len(means) : first], strict=True)}
            uneven = some_uneven > 0
            if squares * trainer.world_size > (1.0 + 1e-9) * values[first] ** 2:
                self._tell_unequal()
        return {**means, "loss": sum(parts.values())} if uneven and parts else means

    def _tell_unequal(self) -> None:
        if not self._told_unequal:
            self._told_unequal = True
            rank_zero_warn(
                "The processes have trained on unequal numbers of rows. The gradient is the mean of the processes' "
                "gradients, so losses that are means over rows, such as KDLoss and HintLoss, weigh the rows of a "
                "process with few of them more. Give each process as many rows in each batch."
            )

    def _weighted(self, means: Mapping[str, float]) -> dict[str, float]:
        """Return the weighted means of the parts that the loss is the sum of, nothing if a weight is not known."""
        weights, weighted = self.objective.weights(), self.log.epoch_shares
        names = [name for name in means if name != "loss" and "/" not in name]
        known = weighted if self.objective.changes_over_time else weights
        if not all(name in known for name in names):
            return {}
        return {name: weighted.get(name, weights[name] * means[name]) for name in names}

    def shares(self) -> list[tuple[str, float, float, float]]:
        """Return (name, weight, mean, share of the loss) of each part over the last epoch.

        A weight that changed within the epoch is told as the one that gives the same share. Where parts are means over
        labels or tokens, and others over rows, the loss is the sum of the parts, as in the log.
        """
        means, weights, weighted = self.log.epoch_means, self.objective.weights(), self.log.epoch_shares
        parts = self._weighted(means) if self.log.epoch_is_uneven else {}
        total = sum(parts.values()) or means.get("loss") or 1.0
        found = []
        for name, mean in means.items():
            if name in weights:
                part = weighted.get(name, weights[name] * mean)
                weight = part / mean if name in weighted and mean else weights[name]
                found.append((name, weight, mean, part / total))
        return found


def _write(module: LightningModule, line: Mapping[str, float], step: int) -> None:
    for logger in module.loggers:
        logger.log_metrics({**line, "epoch": module.current_epoch}, step=step)
