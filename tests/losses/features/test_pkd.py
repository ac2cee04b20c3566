"""Pearson distillation: the authors' numbers, the correlation, and what it does not see."""

import pytest
import torch

from lightning_kd.functional import pkd_loss
from lightning_kd.losses import PKDLoss
from tests.losses.case import check_float32, random, tight
from tests.losses.golden import Golden, check_golden, golden


@pytest.mark.parametrize("record", golden("pkd"), ids=str)
def test_it_equals_the_authors_code(record: Golden) -> None:
    check_golden(record, lambda s, t, _: sum(pkd_loss(a, b) for a, b in zip(s, t, strict=True)))


def test_it_is_one_minus_the_correlation() -> None:
    student, teacher = 1e3 * random(3, 4, 2, 5, seed=1), 1e3 * random(3, 4, 2, 5, seed=2)
    correlation = [
        torch.corrcoef(torch.stack([student[:, c].flatten(), teacher[:, c].flatten()]))[0, 1] for c in range(4)
    ]
    expected = (1 - torch.stack(correlation).mean()) * 29 / 30  # of 30 values
    torch.testing.assert_close(pkd_loss(student, teacher), expected, rtol=1e-6, atol=0.0)


def test_it_sees_neither_mean_nor_scale_of_a_channel() -> None:
    student, teacher = 1e3 * random(4, 5, 3, 2, seed=1), 1e3 * random(4, 5, 3, 2, seed=2)
    scale, offset = 0.5 + random(1, 5, 1, 1, seed=3).abs(), 1e3 * random(1, 5, 1, 1, seed=4)
    value = pkd_loss(scale * student + offset, teacher * 10 - offset)
    torch.testing.assert_close(value, pkd_loss(student, teacher), rtol=1e-6, atol=0.0)


def test_float32_is_exact_for_a_tight_cluster_far_from_zero() -> None:
    check_float32(pkd_loss, [tight(4, 8, 3, 5, seed=seed) for seed in (1, 2)], tolerance=1e-3)


@pytest.mark.parametrize("shape", [(1, 3), (1, 1, 3), (1, 3, 1, 1)], ids=str)
def test_a_single_value_of_each_channel_says_nothing(shape: tuple[int, ...]) -> None:
    student = random(*shape, seed=1).requires_grad_()
    value = pkd_loss(student, random(*shape, seed=2))
    value.backward()
    assert value.item() == 0.0
    assert not student.grad.any()


def test_only_widths_that_differ_have_a_projector() -> None:
    loss = PKDLoss(["a", "b"], ["c", "d"])
    loss.build({"a": (4, 3, 2, 2), "b": (4, 7, 3)}, {"c": (4, 3, 2, 2), "d": (4, 7, 5)})
    assert [(name, tuple(p.shape)) for name, p in loss.named_parameters()] == [("projectors.1.linear.weight", (5, 3))]
