"""Mutual learning: the gradient of each member is that of learning from fixed others, and bad cohorts."""

import pytest
import torch
from torch import nn

from lightning_kd.functional import kd_loss, mutual_learning_loss
from lightning_kd.losses import MutualLearning
from lightning_kd.losses.base import StepTensors
from tests.losses.case import random


@pytest.mark.parametrize("members", [2, 3])
def test_every_member_learns_from_the_others_as_from_fixed_teachers(members: int) -> None:
    cohort = [random(5, 4, seed=seed).requires_grad_() for seed in range(members)]
    target = torch.tensor([0, 3, -100, 1, 2])
    mutual_learning_loss(cohort, target, temperature=2.0).backward()
    for k, member in enumerate(cohort):
        alone = member.detach().clone().requires_grad_()
        others = [other.detach() for i, other in enumerate(cohort) if i != k]
        value = sum(kd_loss(alone, other, temperature=2.0) for other in others) / len(others)
        if k:
            value = value + nn.functional.cross_entropy(alone, target)
        value.backward()
        torch.testing.assert_close(member.grad, alone.grad)


def test_a_cohort_that_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="two or more members, got 1"):
        mutual_learning_loss([torch.zeros(1, 2)])
    with pytest.raises(ValueError, match=r"\(1, 2\) and teacher \(1, 3\); give student and peers heads for the same"):
        mutual_learning_loss([torch.zeros(1, 2), torch.zeros(1, 3)])
    peer = nn.Linear(1, 1)
    for peers in ([], [peer, peer]):
        with pytest.raises(ValueError, match="one or more different networks as peers"):
            MutualLearning(peers)


def test_a_peer_without_logits_is_told() -> None:
    step = StepTensors(student_logits=torch.zeros(1, 2), target=torch.tensor([0]), call=lambda _: None)
    with pytest.raises(ValueError, match="a peer's output has no logits"):
        MutualLearning([nn.Linear(1, 1)]).evaluate(step)
