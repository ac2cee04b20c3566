"""KD of labels that do not exclude one another."""

import pytest
import torch
import torch.nn.functional as F

from lightning_kd.functional import kd_loss, multi_label_kd_loss
from lightning_kd.losses import MultiLabelKDLoss
from tests.losses.case import random


def test_it_is_the_cross_entropy_of_torch_less_the_teachers_entropy():
    student, teacher = random(6, 4, seed=1), random(6, 4, seed=2)
    odds = teacher.sigmoid()
    naive = F.binary_cross_entropy_with_logits(student, odds) - F.binary_cross_entropy(odds, odds)
    torch.testing.assert_close(multi_label_kd_loss(student, teacher, reduction="mean"), naive)


def test_a_single_label_is_kd_of_one_logit():
    student, teacher = random(6, 1, seed=1), random(6, 1, seed=2)
    expected = kd_loss(student, teacher, temperature=3.0)
    torch.testing.assert_close(multi_label_kd_loss(student, teacher, temperature=3.0), expected)
    torch.testing.assert_close(multi_label_kd_loss(student[:, 0], teacher[:, 0], temperature=3.0), expected)


def test_an_unknown_reduction():
    with pytest.raises(ValueError, match="MultiLabelKDLoss: expected reduction 'sum' or 'mean', got 'none'"):
        MultiLabelKDLoss(reduction="none")
