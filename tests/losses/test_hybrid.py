"""Hybrids: balance over steps, in 16 bits, and options that cannot be."""

import pytest
import torch
from torch import nn

from lightning_kd.functional import hybrid_loss
from lightning_kd.losses import HybridLoss, KDLoss
from lightning_kd.losses.base import StepTensors
from tests.losses.case import random


def steps(count: int) -> list[StepTensors]:
    return [StepTensors(random(4, 3, seed=i), random(4, 3, seed=9)) for i in range(count)]


def test_magnitudes_follow_a_moving_average_of_the_losses_sizes() -> None:
    hybrid = HybridLoss([KDLoss(1.0), KDLoss(8.0)], balance="magnitude", momentum=0.9)
    means = None
    for step in steps(5):
        sizes = torch.stack([loss.evaluate(step) for loss in hybrid.losses])
        means = sizes if means is None else 0.9 * means + 0.1 * sizes
        torch.testing.assert_close(hybrid.evaluate(step), (sizes / means).sum())
    before = hybrid.means.clone()
    torch.testing.assert_close(before, means.float())
    with torch.no_grad():
        hybrid.evaluate(steps(1)[0])
    hybrid.eval().evaluate(steps(1)[0])
    assert torch.equal(hybrid.means, before)
    assert hybrid.to(torch.bfloat16).means.dtype == torch.float32


def test_uncertainty_finds_the_variance_that_weighs_every_loss_alike() -> None:
    values, log_variances = [torch.tensor(0.2), torch.tensor(4.0)], nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.Adam([log_variances], lr=0.05)
    for _ in range(800):
        optimizer.zero_grad()
        hybrid_loss(values, [1.0, 1.0], log_variances).backward()
        optimizer.step()
    torch.testing.assert_close(log_variances.exp(), 2 * torch.stack(values), rtol=1e-3, atol=0)


def test_a_child_that_waits_is_left_out() -> None:
    hybrid = HybridLoss([KDLoss(1.0), KDLoss(2.0)])
    assert not hybrid.trains_now(teacher_ready=False)
    assert hybrid.trains_now(teacher_ready=True)
    assert hybrid.needs_teacher


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"losses": []}, ValueError, "at least one loss, got an empty list"),
        ({"losses": [nn.CrossEntropyLoss()]}, TypeError, "got CrossEntropyLoss; give the task's own loss"),
        ({"balance": "equal"}, ValueError, "'none', 'magnitude' or 'uncertainty', got 'equal'"),
        ({"momentum": 1.0}, ValueError, r"expected momentum in \[0, 1\), got 1.0"),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict[str, object], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        HybridLoss(**options)
    same = KDLoss()
    with pytest.raises(ValueError, match="is in the list twice"):
        HybridLoss([same, same])
    with pytest.raises(ValueError, match=r"expected one weight.*got 1 losses, 2 weights"):
        hybrid_loss([torch.tensor(1.0)], [1.0, 2.0])
