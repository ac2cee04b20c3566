"""Inter-channel correlation: the definition in loops, and what it does not see."""

import torch

from lightning_kd.functional import ickd_loss
from lightning_kd.losses import ICKDLoss
from tests.losses.case import random


def test_it_equals_a_loop() -> None:
    student, teacher = random(3, 4, 2, 3, seed=1), random(3, 4, 5, 2, seed=2)
    expected = 0.0
    for pair in zip(student, teacher, strict=True):
        grams = [torch.stack([torch.stack([(x * y).sum() for y in maps]) for x in maps]) for maps in pair]
        student_rows, teacher_rows = ([row / row.norm() for row in gram] for gram in grams)
        expected += sum((a - b).square().sum() for a, b in zip(student_rows, teacher_rows, strict=True)) / (3 * 4)
    torch.testing.assert_close(ickd_loss(student, teacher), expected)


def test_it_does_not_see_the_order_of_positions() -> None:
    student, teacher = random(3, 4, 2, 3, seed=1), random(3, 4, 2, 3, seed=2)
    torch.testing.assert_close(ickd_loss(student.flip(2, 3), teacher), ickd_loss(student, teacher))


def test_the_projector_is_that_of_the_published_code() -> None:
    component = ICKDLoss("a", "b")
    component.build({"a": (8, 3, 4, 4)}, {"b": (8, 5, 4, 4)})
    assert sorted(name for name, _ in component.named_parameters()) == [
        f"projectors.0.{name}" for name in ("bn.bias", "bn.weight", "conv.weight")
    ]
