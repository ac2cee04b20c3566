"""Losses that would be 0 without a word are warned of."""

import warnings

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from lightning_kd.losses import ATLoss, CWDLoss, KDLoss, PKTLoss, RKDLoss, SPLoss
from tests import support


class Pooled(nn.Module):
    def __init__(self, width, size):
        super().__init__()
        self.conv, self.pool = nn.Conv2d(1, width, 3, padding=1), nn.AdaptiveAvgPool2d(size)
        self.head = nn.LazyLinear(support.CLASSES) if size > 1 else nn.Linear(width, support.CLASSES)

    def forward(self, x):
        return self.head(self.pool(self.conv(x)).flatten(1))


def fit(student, teacher, losses, size=8):
    module = support.module(student, teacher=teacher, losses=losses)
    support.trainer(max_epochs=1, limit_val_batches=0).fit(
        module, DataLoader(support.data(8), size), DataLoader(support.data(8), size)
    )
    return module.trainer.callback_metrics


@pytest.mark.parametrize("loss", [ATLoss, CWDLoss])
@pytest.mark.parametrize(("ours", "theirs", "channels"), [(1, 1, 3), (2, 1, 5)])
def test_maps_of_one_position(loss, ours, theirs, channels):
    student, teacher = Pooled(3, ours), Pooled(5, theirs)
    student(torch.zeros(1, 1, 4, 4))
    words = rf"'pool' returns \(\d, {channels}, 1, 1\), of one position, so this pair is always 0"
    with pytest.warns(UserWarning, match=words):
        found = fit(student, teacher, [loss("pool", "pool")])
    assert float(found[f"train/{'at' if loss is ATLoss else 'cwd'}"]) == pytest.approx(0.0, abs=1e-7)


@pytest.mark.parametrize("loss", [RKDLoss, SPLoss, PKTLoss])
def test_batches_of_one_sample(loss):
    with pytest.warns(UserWarning, match="the first batch has one sample, of which it can teach nothing"):
        fit(Pooled(3, 1), Pooled(5, 1), [loss("pool", "pool")], size=1)


def test_a_last_batch_of_one_sample_and_other_losses_are_not_warned_of():
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*one (sample|position)")
        fit(Pooled(3, 1), Pooled(5, 1), [RKDLoss("pool", "pool"), KDLoss()], size=7)
        fit(Pooled(3, 1), Pooled(5, 1), [KDLoss()], size=1)
