"""Hidden states: the numbers of others' code, and padding."""

import math

import pytest
import torch
from torch import Tensor

from lightning_kd.functional import hidden_state_loss
from lightning_kd.losses import HiddenStateLoss
from tests.losses.case import random
from tests.losses.golden import TOKENS, Golden, check_golden, golden


@pytest.mark.parametrize("record", golden("hidden_masked", folder=TOKENS), ids=str)
def test_it_equals_the_code_of_others(record: Golden) -> None:
    def formula(s: list[Tensor], t: list[Tensor], more: dict[str, Tensor]) -> Tensor:
        values = [hidden_state_loss(s[i], t[i], kind=record.hyper["kind"], mask=more["mask"]) for i in range(2)]
        return torch.stack(values).mean()

    check_golden(record, formula)


@pytest.mark.parametrize("kind", ["mse", "cosine"])
@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_padding_makes_no_difference(kind: str, poison: float) -> None:
    mask = torch.tensor([[1, 0, 1], [0, 1, 1]])
    student, teacher = random(2, 3, 4, seed=1), random(2, 3, 4, seed=2)
    expected = hidden_state_loss(student[mask.bool()], teacher[mask.bool()], kind=kind)
    bad = [torch.where(mask.bool().unsqueeze(-1), x, poison).requires_grad_() for x in (student, teacher)]
    value = hidden_state_loss(*bad, kind=kind, mask=mask)
    value.backward()
    assert torch.equal(value, expected)
    assert bad[0].grad is not None
    assert bad[0].grad.isfinite().all()
    assert not bad[0].grad[~mask.bool()].any()


@pytest.mark.parametrize("kind", ["mse", "cosine"])
def test_padding_alone_is_zero_with_a_graph(kind: str) -> None:
    student = random(2, 3, 4, seed=1).requires_grad_()
    value = hidden_state_loss(student, random(2, 3, 4, seed=2), kind=kind, mask=torch.zeros(2, 3))
    value.backward()
    assert value.item() == 0.0
    assert student.grad is not None
    assert not student.grad.any()


def test_what_is_wrong_is_named() -> None:
    with pytest.raises(ValueError, match=r"'mse', 'cosine'\], got 'l1'"):
        hidden_state_loss(torch.zeros(2, 3), torch.zeros(2, 3), kind="l1")
    with pytest.raises(ValueError, match=r"mask of shape \(2, 3\).*\(2, 4\)"):
        hidden_state_loss(torch.zeros(2, 3, 4), torch.zeros(2, 3, 4), mask=torch.zeros(2, 4))
    with pytest.raises(ValueError, match=r"HiddenStateLoss: expected kind"):
        HiddenStateLoss("a", "b", kind="l1")
