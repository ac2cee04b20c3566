"""Inputs whose size changes during a fit, and outputs of two sizes, are refused in words where a loss needs one."""

import pytest
import torch
from torch import nn

from lightning_kd import DistillationModule
from lightning_kd.losses import CCLoss, InfoNCELoss, KDLoss, TripletLoss
from tests import support


class Maps(nn.Module):
    """Scores each position of a map, in a size that depends on that of the images."""

    def __init__(self, scale=1):
        super().__init__()
        self.features = nn.Conv2d(3, 4, 3, padding=1)
        self.head = nn.Sequential(nn.Conv2d(4, 5, 1), nn.Upsample(scale_factor=scale))

    def forward(self, x):
        return self.head(self.features(x))


def batch(size, rows=4):
    generator = torch.Generator().manual_seed(size)
    return torch.randn(rows, 3, size, size, generator=generator), torch.zeros(rows, size, size, dtype=torch.long)


def fit(teacher, loss, *batches):
    module = DistillationModule(Maps(), teacher, [loss])
    support.fit(module, train=support.batches(*batches), max_epochs=1, limit_val_batches=0)


LOSSES = [
    InfoNCELoss("features", "features"),
    TripletLoss("features", "features"),
    CCLoss("features", "features", variant="repdistiller"),
]


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: type(loss).__name__)
def test_losses_that_embed_whole_maps_say_that_the_size_has_changed(loss):
    with pytest.raises(ValueError, match=r"\(4, 4, 12, 12\) have 576 numbers .* the 256 of the first samples.*pooled"):
        fit(Maps(), loss, batch(8), batch(12))


def test_outputs_of_two_sizes_are_refused_with_the_layer_that_makes_them_one():
    words = r"\(4, 5, 8, 8\) .*\(4, 5, 16, 16\) score the same 5 classes at other positions.*size=\(8, 8\)"
    with pytest.raises(ValueError, match=words):
        fit(Maps(2), KDLoss(), batch(8))
    fit(nn.Sequential(Maps(2), nn.Upsample(size=(8, 8), mode="bilinear")), KDLoss(), batch(8))  # the remedy
