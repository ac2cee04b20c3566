"""Whether a student can learn a single batch by heart: one that cannot will not learn the data either."""

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_kd.capture.batch import Batch
from lightning_kd.capture.networks import isolated_random_state, original
from lightning_kd.doctor.findings import Finding
from lightning_kd.fit.run import DistillationRun

_RATE = 0.01


def learn_one_batch(run: DistillationRun, read: Batch, steps: int) -> tuple[int, int] | None:
    """Train a copy of the student on the labels of one batch alone, and count what it then gets right.

    Args:
        run: The run, whose student is left as it is.
        read: The batch, taken apart.
        steps: How many steps of AdamW with a learning rate of 0.01.

    Returns:
        How many labels it gets right, and how many there are; ``None`` if the task is no classification.
    """
    target = read.target
    if run.task.task.kind not in (None, "classes"):
        return None
    if not steps or not isinstance(target, Tensor) or target.ndim != 1 or target.is_floating_point():
        return None
    with isolated_random_state(), torch.enable_grad():
        network = copy.deepcopy(original(run.student)).train()
        trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=_RATE)
        for _ in range(steps):
            logits = run.step.hooks.logits_of(_call(network, read))
            if logits is None or logits.ndim != 2 or logits.shape[1] < 2:
                return None
            counted = (target >= 0) & (target < logits.shape[1])
            if not counted.any():
                return None
            optimizer.zero_grad()
            F.cross_entropy(logits[counted].float(), target[counted]).backward()
            optimizer.step()
            right, rows = int((logits.argmax(1) == target)[counted].sum()), int(counted.sum())
    return right, rows


def finding_of_capacity(right: int, rows: int, steps: int) -> Finding | None:
    """Return what to say of a student that gets less than half of a batch right after it was trained on it alone."""
    if 2 * right >= rows:
        return None
    return Finding(
        "capacity",
        f"The student gets {right} of {rows} samples right after {steps} steps on these alone (AdamW, {_RATE:g}).",
        "It may be too small or too deep to train, or its inputs may be out of range; try a wider one, normalised "
        "inputs, or more steps (--fit_steps).",
        is_sure=False,
    )


def _call(network: torch.nn.Module, read: Batch) -> Any:
    return network(*read.args, **read.kwargs)
