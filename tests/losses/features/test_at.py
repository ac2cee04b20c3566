"""Attention transfer: the authors' numbers and what it does not see."""

import pytest
import torch

from lightning_kd.functional import attention_transfer_loss
from tests.losses.case import random
from tests.losses.golden import Golden, check_golden, golden


@pytest.mark.parametrize("record", golden("at", "", "__p4"), ids=str)
def test_it_equals_the_authors_code(record: Golden) -> None:
    p = float(record.hyper["p"])
    check_golden(record, lambda s, t, _: sum(attention_transfer_loss(a, b, p=p) for a, b in zip(s, t, strict=True)))


def test_it_sees_neither_the_order_of_channels_nor_a_positive_scale() -> None:
    student, teacher = random(4, 5, 3, 2, seed=1), random(4, 6, 3, 2, seed=2)
    value = attention_transfer_loss(student, teacher)
    torch.testing.assert_close(attention_transfer_loss(7.0 * student[:, torch.randperm(5)], teacher), value)
    torch.testing.assert_close(attention_transfer_loss(student, 0.1 * teacher[:, torch.randperm(6)]), value)


@pytest.mark.parametrize("constant", [0.0, 3.0])
def test_constant_maps_are_finite(constant: float) -> None:
    student = torch.full((2, 3, 4, 5), constant, requires_grad=True)
    loss = attention_transfer_loss(student, torch.zeros(2, 3, 4, 5))
    loss.backward()
    assert loss.isfinite()
    assert student.grad.isfinite().all()


def test_p_must_be_positive() -> None:
    with pytest.raises(ValueError, match="expected p > 0, got 0"):
        attention_transfer_loss(random(1, 1, 1, 2, seed=1), random(1, 1, 1, 2, seed=2), p=0.0)
