"""How much each part of the loss pulls at the student, and in which direction: its gradient on one batch."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lightning_kd.capture.networks import is_compiled, isolated_random_state
from lightning_kd.engine.step import Terms
from lightning_kd.fit.run import DistillationRun

_MOST = 100_000_000
"""How many numbers the gradients of all parts together may have."""


def why_not(run: DistillationRun, *, processes: int, scaled: bool) -> str | None:
    """Return why the gradients of a run's parts cannot be looked at, ``None`` if they can.

    Args:
        run: The run.
        processes: How many processes train.
        scaled: Whether gradients are scaled, as in 16-mixed.
    """
    if processes > 1:
        return "a backward pass of one part alone may need all processes"
    if scaled:
        return "under 16-mixed the gradients of single parts are not scaled"
    if is_compiled(run.student):
        return "a compiled student allows one backward pass in a step"
    trained = sum(p.numel() for p in run.student.parameters() if p.requires_grad)
    parts = len(run.objective.named) + 1
    if trained * parts > _MOST:
        return f"{parts} gradients of {trained:,} parameters would take too much memory"
    return None


def products_of_gradients(run: DistillationRun, terms: Terms) -> dict[str, Any] | None:
    """Return the products of the weighted parts' gradients at the student's parameters, as plain data.

    The diagonal holds the squared lengths; cosines and shares follow from it. The graph of the step stays, and so does
    all that a second pass through checkpointed layers would change.

    Args:
        run: The run.
        terms: The terms of a step before its backward pass.

    Returns:
        ``{"parts": names, "products": rows}``, ``None`` if no part has a gradient.
    """
    parameters = [p for p in run.student.parameters() if p.requires_grad]
    weights = run.objective.weights()
    rows: dict[str, list[Tensor | None]] = {}
    with isolated_random_state(), _buffers_kept(run.student):
        for name, value in terms.parts.items():
            weight = weights.get(name, 0.0)
            if weight and value.requires_grad:
                found = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
                rows[name] = [None if one is None else weight * one.detach() for one in found]
    rows = {name: row for name, row in rows.items() if any(one is not None for one in row)}
    if not rows:
        return None
    products = [[_product(one, other) for other in rows.values()] for one in rows.values()]
    return {"parts": list(rows), "products": products}


@contextmanager
def _buffers_kept(network: nn.Module) -> Iterator[None]:
    """Put back buffers that a second pass through checkpointed layers has changed, such as BatchNorm's statistics."""
    kept = [(buffer, buffer.detach().clone()) for buffer in network.buffers()]
    try:
        yield
    finally:
        for buffer, value in kept:
            buffer.data.copy_(value)  # by .data, since the backward pass still to come counts other changes


def _product(one: list[Tensor | None], other: list[Tensor | None]) -> float:
    pairs = ((a, b) for a, b in zip(one, other, strict=True) if a is not None and b is not None)
    return float(sum(float((a.double() * b.double()).sum()) for a, b in pairs))
