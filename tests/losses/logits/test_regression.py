"""Distillation of numbers."""

import pytest
import torch

from lightning_kd.functional import regression_kd_loss
from lightning_kd.losses import RegressionKDLoss
from tests.losses.case import random


def test_a_target_without_the_axis_of_one_is_the_same_target():
    student, teacher, target = random(6, 1, seed=1), random(6, 1, seed=2), random(6, seed=3)
    flat = regression_kd_loss(student[:, 0], teacher[:, 0], target, kind="bounded")
    torch.testing.assert_close(regression_kd_loss(student, teacher, target, kind="bounded"), flat)


@pytest.mark.parametrize("target", [None, torch.zeros(6, 6), torch.zeros(3)])
def test_the_bounded_form_needs_a_target_of_its_shape(target):
    with pytest.raises(ValueError, match="target"):
        regression_kd_loss(random(6, 1, seed=1), random(6, 1, seed=2), target, kind="bounded")


def test_options_out_of_range():
    for options in ({"kind": "l1"}, {"delta": 0.0}, {"margin": -1.0}):
        with pytest.raises(ValueError, match="RegressionKDLoss: expected"):
            RegressionKDLoss(**options)
