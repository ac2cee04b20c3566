"""A teacher that sees its inputs at another scale than in training is told of at set-up."""

import warnings

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_kd.losses import HintLoss, KDLoss
from tests import support


def trained_on(images, net):
    """Let the batch normalisations see images, as training would."""
    net.train()
    with torch.no_grad():
        for _ in range(100):
            net(images)
    return net.eval()


def images(rows=64):
    return torch.rand(rows, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def norm_net(width, norm=nn.BatchNorm2d):
    return nn.Sequential(
        nn.Conv2d(1, width, 3), norm(width), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10)
    )


def told(teacher, scale, losses=None, **options):
    data = DataLoader(TensorDataset(scale * images(16), torch.arange(16) % 10), batch_size=8)
    module = support.module(norm_net(4), teacher=teacher, losses=losses or [KDLoss()], **options)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        support.fit(module, train=data, max_steps=1)
    return [str(one.message) for one in caught if "batch normalisation" in str(one.message)]


def test_images_of_0_to_255_for_a_teacher_of_0_to_1_are_told():
    teacher = trained_on(images(), norm_net(8))
    (said,) = told(teacher, 255.0)
    assert "first batch normalisation '1'" in said
    assert "teacher_inputs=Renormalize(...)" in said
    assert told(teacher, 1.0) == []
    assert len(told(teacher, 255.0, losses=[HintLoss("0", "0")])) == 1


def test_the_teachers_own_view_is_what_counts():
    teacher = trained_on(images(), norm_net(8))
    assert told(teacher, 255.0, teacher_inputs=lambda args, kwargs: ((args[0] / 255,), kwargs)) == []


@pytest.mark.parametrize("norm", [lambda width: nn.GroupNorm(1, width), nn.Identity, nn.BatchNorm2d])
def test_a_network_that_does_not_tell_is_not_told_of(norm):
    """One without statistics, and one that has none from training as yet."""
    assert told(norm_net(8, norm).eval(), 255.0) == []
