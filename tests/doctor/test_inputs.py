"""``lightning-kd check`` says if the teacher sees inputs at another scale than in training."""

import pytest
import torch
from torch import nn

from lightning_kd.doctor.inputs import InputWatch

MEAN, STD = 0.45, 0.225
"""About those of ImageNet."""


@pytest.fixture(scope="module")
def pictures():
    """Smooth pictures of 0..1, with the mean and the spread of photographs."""
    coarse = torch.rand(64, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return nn.functional.interpolate(coarse, 32, mode="bicubic").clamp(0, 1)


@pytest.fixture(scope="module")
def net(pictures):
    """A network that was trained on normalised pictures, as far as its statistics go."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = nn.Sequential(nn.Conv2d(3, 16, 7, 2), nn.BatchNorm2d(16), nn.ReLU(), nn.BatchNorm2d(16))
    with torch.no_grad():
        for _ in range(60):
            made(normalised(pictures))
    return made.eval()


def normalised(pictures):
    return (pictures - MEAN) / STD


def found(net, values):
    with InputWatch(net) as watch, torch.no_grad():
        for part in values.split(16):
            net(part)
    return watch.finding()


def test_the_inputs_of_training_are_right(net, pictures):
    assert found(net, normalised(pictures)) is None
    assert found(net, 0.6 * normalised(pictures) + 0.3) is None  # pictures of another kind
    assert not net[1]._forward_pre_hooks


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda pictures: 255 * pictures, "times as far from their mean as in the teacher's training"),
        (lambda pictures: pictures, "values that vary only"),
        (lambda pictures: normalised(pictures) / 255, "values that vary only"),
    ],
    ids=["0 to 255", "not normalised", "divided twice"],
)
def test_another_scale_is_found(net, pictures, change, said):
    finding = found(net, change(pictures))
    assert said in str(finding)
    assert "batch normalisation '1'" in str(finding)
    assert "teacher_inputs=Renormalize(...)" in str(finding)


def test_without_a_normalisation_nothing_is_found(pictures):
    assert found(nn.Conv2d(3, 4, 3), 255 * pictures) is None
    with InputWatch(None) as watch:
        pass
    assert watch.finding() is None
