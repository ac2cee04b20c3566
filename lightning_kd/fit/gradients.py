"""Gradients that are not finite are told before the optimizer takes them, with the parameters and the part at fault."""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from lightning_kd.distributed.sharding import mesh_of
from lightning_kd.engine.gradients import parts_at_fault
from lightning_kd.engine.objective import Goal
from lightning_kd.engine.step import TrainingStep
from lightning_kd.fit.part_log import SPARED
from lightning_kd.losses.base import StepTensors

_WAIT = 64
"""Steps whose gradients wait on an accelerator before they are looked at."""
_SHOWN = 5
"""Parameters that a message names."""
_REMEDY = (
    "Look there for a root, a norm or a division at 0, such as x.sqrt() or x.norm(), and write (x + eps).sqrt(); lower "
    "the weight of that part or the learning rate; or mend or drop such gradients yourself in on_after_backward."
)


class GradientCheck:
    """Stops a run before its optimizer takes a gradient that is not finite.

    A sum is not finite if one of its numbers is not, so a step takes the sum of each gradient, and looks into them only
    if one is not finite. On an accelerator the sums wait, as the log's values do: to look at them would stall the
    device. A gradient scaler looks at the gradients itself, and skips its steps; so nothing is done beside one. Under
    FSDP2 each process has another part of the gradients, and looking together would cost a message in every step.

    Args:
        step: The training step, whose losses may be at fault.
    """

    def __init__(self, step: TrainingStep) -> None:
        self.step = step
        self.tensors: StepTensors | None = None
        """What the losses have read since the batch began, to find out which of them is at fault."""
        self._goal: Goal | None = None
        self._on = False
        self._waiting: list[Tensor] = []
        self._steps: list[int] = []

    def start(self, trainer: Trainer) -> None:
        """Begin to look, unless a gradient scaler does, or the gradients are split over processes."""
        self.forget()
        self._waiting, self._steps = [], []
        self._on = getattr(trainer.precision_plugin, "scaler", None) is None and mesh_of(trainer) is None

    def remember(self, goal: Goal, tensors: StepTensors | None) -> None:
        """Keep what the losses read in a step until the optimizer steps."""
        if self._on:
            self.tensors, self._goal = tensors, goal

    def forget(self) -> None:
        """Keep nothing of a step."""
        self.tensors = self._goal = None

    def stop(self) -> None:
        """Look no more."""
        self.forget()
        self._on = False

    def before_optimizer_step(self, module: LightningModule, optimizer: Optimizer, step: int) -> None:
        """Look at the gradients that an optimizer is about to take.

        Args:
            module: The module that trains, for the names.
            optimizer: The optimizer.
            step: Number of the step, for the error.

        Raises:
            FloatingPointError: If a gradient is not finite.
        """
        if not self._on:
            return
        tensors, goal, self.tensors, self._goal = self.tensors, self._goal, None, None
        sums = [g.sum() for group in optimizer.param_groups for p in group["params"] if (g := p.grad) is not None]
        if not sums:
            return
        if self._waits(sums[0]):
            self._waiting.append(torch.stack([value.to(sums[0].device) for value in sums]).isfinite().all())
            self._steps.append(step)
            if len(self._steps) == _WAIT:
                self.look(module)
            return
        total: Any = 0.0
        for value in sums:
            total += value.item()
        if total - total == 0:  # neither NaN nor infinite, real or complex
            return
        bad = not_finite(module, gradients=True)
        if bad:
            raise FloatingPointError(
                f"The gradient is not finite at step {step}, though the loss is finite: {_shown(bad)}. "
                f"{self._whose(module.trainer, goal, tensors)} The weights have not been updated with it. {_REMEDY}"
            )

    def look(self, module: LightningModule, before: int | None = None) -> None:
        """Look at the sums that wait.

        Args:
            module: The module that trains, for the names.
            before: The first step whose loss was not finite, if there is one; its gradient is not finite either.

        Raises:
            FloatingPointError: If one was not finite, and neither are weights now: a finite gradient may be so large
                that its sum is not.
        """
        if not self._waiting:
            return
        fine, steps = torch.stack(self._waiting).tolist(), self._steps
        self._waiting, self._steps = [], []
        first = next((step for step, good in zip(steps, fine, strict=True) if not good), None)
        if first is None or (before is not None and first >= before):
            return
        bad = not_finite(module, gradients=False)
        if bad:
            raise FloatingPointError(
                f"The gradient was not finite at step {first}, though the loss was finite. It is seen late on an "
                f"accelerator, and the weights have been updated with it; not finite by now: {_shown(bad)}. {_REMEDY}"
            )

    def _waits(self, value: Tensor) -> bool:
        """Whether looking at a value now would stall the device."""
        return not value.is_cpu

    def _whose(self, trainer: Trainer, goal: Goal | None, tensors: StepTensors | None) -> str:
        found: Mapping[str, Iterable[str]] | None = None
        if goal is not None and tensors is not None:
            # a message about parameters alone is better than an error of ours in its place
            with suppress(Exception), trainer.precision_plugin.forward_context():
                found = parts_at_fault(self.step, goal, tensors)
        if found:
            return " ".join(f"Part {name!r} gives it at {', '.join(places)}." for name, places in found.items())
        if found is None:
            return "Which part gives it is not known."
        several = (
            " in the last batch of this process" if trainer.world_size * trainer.accumulate_grad_batches > 1 else ""
        )
        return f"No distillation loss gives it{several}, so it comes from the task's loss or the network itself."


def not_finite(module: LightningModule, *, gradients: bool) -> dict[str, str]:
    """Return which parameters of a module, or their gradients, are not finite, with how many of their values.

    Args:
        module: The module.
        gradients: Whether to look at the gradients, not at the parameters themselves.
    """
    bad = {}
    for name, parameter in module.named_parameters():
        value = parameter.grad if gradients else parameter.detach()
        if value is not None:
            values = value.coalesce().values() if value.layout == torch.sparse_coo else value
            count = values.numel() - int(values.isfinite().sum())
            if count:
                bad[name] = f"{count} of {values.numel()} values"
    return bad


def with_state_of_weights(error: FloatingPointError, module: LightningModule) -> str:
    """Return what an error says of a loss that is not finite, with what is true of the weights by now."""
    bad = not_finite(module, gradients=False)
    return str(error).replace(SPARED, f" By then weights were not finite: {_shown(bad)}.") if bad else str(error)


def _shown(bad: Mapping[str, str]) -> str:
    named = [f"{name!r} ({count})" for name, count in bad.items()]
    more = f" and {len(named) - _SHOWN} more" if len(named) > _SHOWN else ""
    return f"{', '.join(named[:_SHOWN])}{more}"
