"""Layers that mix tokens or time: the last axis of a linear layer holds no channels there."""

import pytest
import torch
from torch import nn
from torch.nn.functional import normalize
from torch.utils.data import DataLoader

from lightning_kd import DistillationCallback
from lightning_kd.capture.axes import find_axes
from lightning_kd.capture.followed import following
from lightning_kd.losses import ATLoss
from tests import support


def channel_axis(net, layer, *inputs):
    """The axis that is found, with a second call of one sample more."""
    net.eval()
    with torch.no_grad():
        with following(net) as first:
            net(*inputs)
        with following(net) as second:
            net(*(torch.cat([one, one[:1]]) for one in inputs))
    image = tuple(inputs[0].shape[2:]) if inputs[0].ndim == 4 else None
    return find_axes([layer], first, second, len(inputs[0]), image)[layer].channels


class Forecaster(nn.Module):
    """Features, then time, as in DLinear after an embedding; the embedding is copied or shifted in between."""

    def __init__(self, width=8, between=lambda z: z):
        super().__init__()
        self.embed, self.time, self.out = nn.Linear(5, width), nn.Linear(24, 12), nn.Linear(width, 5)
        self.between = between

    def forward(self, x):
        return self.out(self.time(self.between(self.embed(x)).transpose(1, 2).contiguous()).transpose(1, 2))


@pytest.mark.parametrize("between", [lambda z: z, lambda z: z + torch.ones(24, 1), lambda z: z[:, :24].relu()])
def test_time_is_no_channel(between):
    net, x = Forecaster(between=between), torch.randn(2, 24, 5)
    assert [channel_axis(net, layer, x) for layer in ("embed", "time", "out")] == [2, 1, 2]


class Raw(nn.Module):
    """Time before anything else, as in DLinear and NLinear: no module has made the channels."""

    def __init__(self):
        super().__init__()
        self.time, self.head = nn.Linear(24, 12), nn.Linear(60, support.CLASSES)

    def forward(self, x):
        return self.head(self.time((x - x.mean(1, keepdim=True)).permute(0, 2, 1)).permute(0, 2, 1).flatten(1))


def series():
    return DataLoader([(torch.randn(24, 5), i % support.CLASSES) for i in range(8)], batch_size=8)


def fit_series(loss, *nets):
    callback = DistillationCallback(nets[1], [loss], student="net")
    return support.fit(
        support.UserModule(nets[0]), train=series(), callbacks=[callback], max_epochs=1, limit_val_batches=0
    )


def test_time_that_no_module_has_told_from_features_is_asked_for():
    words = r"ATLoss, student layer 'time' of shape \(2, 5, 12\).*ATLoss\(\.\.\., layout='NCL'\)"
    with pytest.raises(ValueError, match=words):
        fit_series(ATLoss("time", "time"), Raw(), Raw())
    fit_series(ATLoss("time", "time", layout="NCL"), Raw(), Raw())


class Mixer(nn.Module):
    """One block of MLP-Mixer with its patches from a convolution; ``tokens`` mixes them."""

    def __init__(self, width=6, convolves=False):
        super().__init__()
        self.patches, self.norm = nn.Conv2d(3, width, 8, stride=8), nn.LayerNorm(width)
        kinds = [nn.Conv1d(16, 9, 1), nn.GELU(), nn.Conv1d(9, 16, 1)] if convolves else None
        self.tokens = nn.Sequential(*(kinds or [nn.Linear(16, 9), nn.GELU(), nn.Dropout(0.1), nn.Linear(9, 16)]))
        self.features, self.head = nn.Linear(width, width), nn.Linear(width, support.CLASSES)
        self.convolves = convolves

    def forward(self, image):
        x = self.patches(image).flatten(2).transpose(1, 2)
        y = self.norm(x)
        x = x + (self.tokens(y) if self.convolves else self.tokens(y.transpose(1, 2)).transpose(1, 2))
        return self.head(self.features(x).mean(1))


@pytest.mark.parametrize("width", [6, 16])
def test_tokens_that_are_mixed_are_no_channels(width):
    net, x = Mixer(width), torch.randn(2, 3, 32, 32)
    layers = ("patches", "norm", "tokens.0", "tokens.1", "tokens.3", "tokens", "features")
    assert [channel_axis(net, layer, x) for layer in layers] == [1, 2, 1, 1, 1, 1, 2]


def test_a_convolution_of_one_position_may_mix_tokens_too():
    net, x = Mixer(convolves=True), torch.randn(2, 3, 32, 32)
    assert [channel_axis(net, layer, x) for layer in ("tokens.0", "tokens", "features")] == [2, 2, 2]


class OnMaps(nn.Module):
    """Norms over a whole map, a linear layer over its positions, and both with the channels last."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.rows = nn.Conv2d(3, 8, 1), nn.LayerNorm([8, 4, 4]), nn.Linear(16, 5)
        self.last, self.mlp, self.embed = nn.LayerNorm(8), nn.Linear(8, 4), nn.Linear(8, 8)

    def forward(self, x):
        x = self.norm(self.conv(x))
        tokens = self.embed(x.flatten(2).transpose(1, 2))
        return self.rows(x.flatten(2)), self.mlp(self.last(x.permute(0, 2, 3, 1))), tokens


def test_what_is_made_of_a_map_keeps_the_channels_of_the_map():
    net, x = OnMaps(), torch.randn(2, 3, 4, 4)
    found = [channel_axis(net, layer, x) for layer in ("norm", "rows", "last", "mlp", "embed")]
    assert found == [1, 1, 3, 3, 2]


@pytest.mark.parametrize("widths", [(8, 8), (8, 16)])
def test_attention_over_time_is_what_it_is_by_hand(widths):
    class Series(Forecaster):
        def forward(self, x):
            return super().forward(x).flatten(1)[:, : support.CLASSES]

    torch.manual_seed(0)
    nets = [Series(width) for width in widths]
    samples = series()
    x, _ = next(iter(samples))
    maps = []
    for net in nets:
        with torch.no_grad():  # (B, C, T): the mean over channels of the squares, at every time
            maps.append(normalize(net.time(net.embed(x).transpose(1, 2)).pow(2).mean(1), dim=1))
    expected = (maps[0] - maps[1]).pow(2).mean()
    callback = DistillationCallback(nets[1], [ATLoss("time", "time")], student="net")
    trainer = support.fit(
        support.UserModule(nets[0]), train=samples, callbacks=[callback], max_epochs=1, limit_val_batches=0
    )
    torch.testing.assert_close(trainer.callback_metrics["train/at"], expected)
