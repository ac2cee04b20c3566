"""How much a loss weighs: as much as the task's own loss at the start, times a factor that may be tuned."""

import math
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor

from lightning_kd.engine.task import task_term
from lightning_kd.module import DistillationModule

FACTORS = (0.001, 0.01, 0.1, 1.0, 10.0)
"""What the weights are multiplied by where they are tuned."""
HELD_OUT = 0.2
"""Fraction of the training rows that tuned weights are chosen on."""
SURVIVORS = 2
"""How many factors are trained to the end; the others end after a quarter of the epochs."""


class LossSizes(Callback):
    r"""Measure the task's loss and the distillation losses before the first step, and end the fit.

    The weight of a loss is then

    .. math::
        w_i = \frac{1}{n} \, \frac{L_{task}}{|L_i|}

    so that the n losses of an arm together begin as large as the task's.

    Args:
        batches: On how many training batches they are measured.
    """

    def __init__(self, batches: int = 8) -> None:
        self.batches = batches
        self.sizes: dict[str, float] = {}
        """Mean of each part, ``task`` among them."""
        self.names: list[str] = []
        """Names of all losses, also of those that train only in a stage before the main training."""

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Measure, and end the fit."""
        loader: Any = trainer.train_dataloader
        with torch.no_grad(), trainer.precision_plugin.train_step_context():
            batches = (trainer.strategy.batch_to_device(batch, dataloader_idx=0) for batch in loader)
            found = [_parts(pl_module, batch) for batch in islice(batches, self.batches)]
        self.sizes = {name: sum(parts[name] for parts in found) / len(found) for name in found[0]}
        self.names = list(pl_module.run.objective.named)
        trainer.fit_loop.max_epochs = 0


def weights_of(sizes: Mapping[str, float], names: Sequence[str]) -> list[float]:
    """Return the weight of each loss, to three digits, in order.

    A loss that trains only in a stage of its own, before the main training, is never added to the task's: its weight
    is 1.

    Args:
        sizes: Size of the task's loss under ``task``, and of each loss of the main training by name.
        names: Names of all losses.

    Raises:
        ValueError: If a loss is 0, or is not finite.

    Example:
        >>> weights_of({"task": 2.3, "kd": 11.5, "hint": -0.23}, ["kd", "fsp", "hint"])  # half of 2.3 / 11.5
        [0.1, 1.0, 5.0]
    """
    count = len(sizes) - 1
    for name, size in sizes.items():
        if not math.isfinite(size) or size == 0.0:
            raise ValueError(
                f"The part {name!r} of the loss is {size:g} on the first batches, so no weight can be told from its "
                "size; use --weights configured, with a weight of your own in the configuration."
            )
    return [float(f"{abs(sizes['task'] / sizes[name]) / count:.3g}") if name in sizes else 1.0 for name in names]


def _parts(module: DistillationModule, batch: Any) -> dict[str, float]:
    """Return the unweighted parts of the main training's loss on a batch."""
    run = module.run
    read = module.unpack_batch(batch)
    with run.step.capture.recording() as call, run.step.thin():
        output = run.step.capture.call(*read.args, **read.kwargs)
        task: Tensor | None
        if module.task_loss == "model":
            task = run.own_loss(output, read)
        else:
            task = (
                None if module.task_loss is None else task_term(module.task_loss, module.logits_of(output), read.target)
            )
        terms = run.step.terms(run.objective.main(True), batch, lambda: read, [call], task)
    return {name: float(value) for name, value in terms.parts.items() if "/" not in name}
