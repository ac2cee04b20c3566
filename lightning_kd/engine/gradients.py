"""Which part of the loss has a gradient that is not finite, though the loss is: found by evaluating each by itself."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from lightning_kd.capture.networks import isolated_random_state
from lightning_kd.capture.no_trace import leaving_no_trace
from lightning_kd.engine.objective import Goal
from lightning_kd.engine.step import TrainingStep
from lightning_kd.losses.base import StepTensors


def parts_at_fault(step: TrainingStep, goal: Goal, tensors: StepTensors) -> dict[str, list[str]]:
    """Return the parts whose gradient is not finite, each with the places where it is not.

    The graph of the step is gone by now, so each part is evaluated once more, on the same numbers. That changes
    nothing: what a loss remembers is put back.

    Args:
        step: The training step.
        goal: What trained in it.
        tensors: What the losses read in it.
    """
    logits = tensors.student_logits
    leaves = {f"the student's layer {name!r}": _leaf(value) for name, value in tensors.student_features.items()}
    again = replace(tensors, student_features=dict(zip(tensors.student_features, leaves.values(), strict=True)))
    if logits is not None:
        leaves["the student's logits"] = again.student_logits = _leaf(logits)
    losses = step.objective.losses
    leaves |= {f"its own {name!r}": p for name, p in losses.named_parameters() if p.requires_grad}
    found = {}
    with isolated_random_state(), leaving_no_trace(losses), torch.enable_grad():
        for name, evaluate in goal.evaluations.items():
            weight = goal.components[name].weight_now if name in goal.components else 1.0
            value = evaluate(again) * weight
            if not value.requires_grad:
                continue
            gradients: Sequence[Tensor | None] = torch.autograd.grad(value, list(leaves.values()), allow_unused=True)
            bad = [
                f"{place} ({int((~gradient.isfinite()).sum())} of {gradient.numel()} values)"
                for place, gradient in zip(leaves, gradients, strict=True)
                if gradient is not None and not gradient.isfinite().all()
            ]
            if bad:
                found[name] = bad
    return found


def _leaf(value: Tensor) -> Tensor:
    return value.detach().requires_grad_(value.is_floating_point() or value.is_complex())
