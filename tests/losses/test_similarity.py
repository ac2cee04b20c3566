"""Similarity-preserving distillation: the authors' numbers and what it does not see."""

import pytest
import torch

from lightning_kd.functional import ickd_loss, similarity_preserving_loss
from lightning_kd.losses import ICKDLoss
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


def test_inter_channel_correlation_equals_a_loop() -> None:
    student, teacher = random(3, 4, 2, 3, seed=1), random(3, 4, 5, 2, seed=2)
    expected = 0.0
    for pair in zip(student, teacher, strict=True):
        grams = [torch.stack([torch.stack([(x * y).sum() for y in maps]) for x in maps]) for maps in pair]
        ours, its = ([row / row.norm() for row in gram] for gram in grams)
        expected += sum((a - b).square().sum() for a, b in zip(ours, its, strict=True)) / (3 * 4)
    torch.testing.assert_close(ickd_loss(student, teacher), expected)


def test_inter_channel_correlation_does_not_see_the_order_of_positions() -> None:
    student, teacher = random(3, 4, 2, 3, seed=1), random(3, 4, 2, 3, seed=2)
    torch.testing.assert_close(ickd_loss(student.flip(2, 3), teacher), ickd_loss(student, teacher))


def test_the_projector_of_correlations_is_that_of_the_published_code() -> None:
    component = ICKDLoss("a", "b")
    component.build({"a": (8, 3, 4, 4)}, {"b": (8, 5, 4, 4)})
    assert sorted(name for name, _ in component.named_parameters()) == [
        f"projectors.0.{name}" for name in ("bn.bias", "bn.weight", "conv.weight")
    ]
