"""Probabilistic transfer: the authors' numbers, and probabilities that are some."""

import pytest
import torch

from lightning_kd.functional import pkt_loss
from lightning_kd.losses.probabilistic import _neighbours
from tests.losses.case import random
from tests.losses.golden import Golden, check_golden, golden


@pytest.mark.parametrize("record", golden("pkt", ""), ids=str)
def test_it_equals_the_authors_code(record: Golden) -> None:
    check_golden(record, lambda s, t, _: pkt_loss(s[0], t[0], eps=record.hyper["eps"]))


def test_the_rows_sum_to_one() -> None:
    torch.testing.assert_close(_neighbours(random(5, 3, seed=1), 1e-7).sum(dim=1), torch.ones(5).double())


def test_a_sample_of_zeros_has_a_finite_gradient() -> None:
    student = torch.zeros(3, 4, requires_grad=True)
    pkt_loss(student, random(3, 4, seed=1).float()).backward()
    assert student.grad.isfinite().all()
