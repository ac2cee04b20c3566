"""Similarity-preserving distillation: the authors' numbers and what it does not see."""

import pytest
import torch

from lightning_kd.functional import similarity_preserving_loss
from tests.losses.case import random
from tests.losses.golden import Golden, check_golden, golden


@pytest.mark.parametrize("record", golden("sp", ""), ids=str)
def test_it_equals_the_authors_code(record: Golden) -> None:
    check_golden(record, lambda s, t, _: similarity_preserving_loss(s[0], t[0]))


def test_it_does_not_see_an_orthogonal_map_of_the_features() -> None:
    student, teacher = random(6, 5, seed=1), random(6, 4, seed=2)
    turn = torch.linalg.qr(random(5, 5, seed=3)).Q
    expected = similarity_preserving_loss(student, teacher)
    torch.testing.assert_close(similarity_preserving_loss(student @ turn, teacher), expected)


def test_samples_of_zeros_are_finite() -> None:
    student = torch.zeros(3, 4, requires_grad=True)
    loss = similarity_preserving_loss(student, random(3, 4, seed=1).float())
    loss.backward()
    assert loss.isfinite()
    assert student.grad.isfinite().all()
