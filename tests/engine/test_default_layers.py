"""Which layers a loss reads by default, rule by rule, in the smallest networks that have the thing."""

import pytest
import torch
from torch import nn

from lightning_kd.capture.trace import Trace
from lightning_kd.engine import setup
from lightning_kd.engine.default_layers import choose_layers
from lightning_kd.losses import ATLoss, HintLoss, OFDLoss, RKDLoss
from tests import support


def followed(net, *inputs):
    inputs = inputs or (torch.randn(2, 3, 16, 16),)
    with torch.no_grad(), Trace(net.eval()) as trace:
        return trace.before(net(*inputs))


def chosen(make, net, *inputs):
    loss, ran = make(), followed(net, *inputs)
    choose_layers(loss, ran, ran)
    return loss.student


class Block(nn.Module):
    """A residual block: two convolutions, and a shortcut where the shape changes."""

    def __init__(self, channels, width, stride=1):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, width, 3, stride, 1), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)
        self.shortcut = nn.Conv2d(channels, width, 1, stride) if stride > 1 or channels != width else nn.Identity()

    def forward(self, x):
        return (self.bn2(self.conv2(self.bn1(self.conv1(x)).relu())) + self.shortcut(x)).relu()


class ResNet(nn.Module):
    def __init__(self, width=4, stages=3, head=None):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        widths = [width * 2**i for i in range(stages)]
        for i, (before, now) in enumerate(zip([width, *widths[:-1]], widths, strict=True), start=1):
            self.add_module(f"layer{i}", nn.Sequential(Block(before, now, 2), Block(now, now)))
        self.stages = stages
        self.fc = head or nn.Linear(widths[-1], 3)

    def features(self, x):
        x = self.stem(x)
        for i in range(1, self.stages + 1):
            x = getattr(self, f"layer{i}")(x)
        return x

    def forward(self, x):
        return self.fc(self.features(x).mean((2, 3)))


def test_stages_and_not_their_stem_or_the_inside_of_the_next():
    assert chosen(ATLoss, ResNet()) == ["layer1", "layer2", "layer3"]
    assert chosen(HintLoss, ResNet()) == "layer3"


def test_a_stem_of_a_size_of_its_own_is_none_even_if_it_is_not_called_so():
    net = ResNet()
    net.first = net.stem
    del net.stem
    net.stem = lambda x: net.first(x)
    assert chosen(ATLoss, net) == ["layer1", "layer2", "layer3"]


def test_a_sequence_of_blocks_is_read_where_each_size_ends():
    flat = nn.Sequential(Block(3, 4), Block(4, 4), Block(4, 8, 2), Block(8, 8), nn.Flatten(), nn.Linear(512, 3))
    assert chosen(ATLoss, flat) == ["1", "3"]


@pytest.mark.filterwarnings("ignore:OFDLoss reads the .* one branch of each residual block")
def test_the_longest_branch_that_the_closing_activation_gets_and_not_the_shortcut():
    assert chosen(OFDLoss, ResNet()) == ["layer1.1.bn2", "layer2.1.bn2", "layer3.1.bn2"]
    single = nn.Sequential(Block(3, 4, 2), Block(4, 8, 2), nn.Flatten(), nn.Linear(128, 3))
    assert chosen(OFDLoss, single) == ["0.bn2", "1.bn2"]


class Normed(nn.Module):
    """Blocks of a convolution and a normalisation; the activation is outside of them."""

    def __init__(self):
        super().__init__()
        self.b1 = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4))
        self.b2 = nn.Sequential(nn.Conv2d(4, 8, 3, 2, padding=1), nn.BatchNorm2d(8))
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.b2(self.b1(x).relu()).relu().mean((2, 3)))


def test_a_block_is_read_whose_output_the_activation_gets():
    assert chosen(OFDLoss, Normed()) == ["b1", "b2"]


class Fused(nn.BatchNorm2d):
    """Ends with its activation, as timm's BatchNormAct2d does."""

    def forward(self, x):
        return super().forward(x).relu()


def test_a_layer_that_ends_with_its_activation_is_refused():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), Fused(4), nn.Flatten(), nn.Linear(4 * 14 * 14, 3))
    words = r"none of the kind that it reads \(a convolution or normalisation whose value an activation gets"
    with pytest.raises(ValueError, match=words):
        chosen(OFDLoss, net)


class Encoder(nn.Module):
    def __init__(self, depth, width=8, heads=1):
        super().__init__()
        self.patch_embed = nn.Conv2d(3, width, 4, 4)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 2, 16, dropout=0.0, batch_first=True) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width)
        self.heads = nn.ModuleList(nn.Linear(width, 3) for _ in range(heads))

    def forward(self, x):
        x = self.patch_embed(x).flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        return sum(head(x[:, i]) for i, head in enumerate(self.heads)) / len(self.heads)


@pytest.mark.parametrize(
    ("depth", "expected"), [(2, [0, 1]), (4, [0, 1, 2, 3]), (6, [1, 2, 4, 5]), (12, [2, 5, 8, 11])]
)
def test_of_one_resolution_the_last_block_of_each_quarter(depth, expected):
    assert chosen(ATLoss, Encoder(depth)) == [f"blocks.{i}" for i in expected]
    assert chosen(HintLoss, Encoder(depth)) == f"blocks.{depth - 1}"


def test_blocks_are_paired_at_the_same_depth():
    loss = ATLoss()
    told = choose_layers(loss, followed(Encoder(2)), followed(Encoder(12)))
    assert (loss.student, loss.teacher) == (["blocks.0", "blocks.1"], ["blocks.5", "blocks.11"])
    assert told == (
        "student 'blocks.0' (2, 16, 8), 'blocks.1' (2, 16, 8) (of 2 blocks, spread over the depth) and teacher "
        "'blocks.5' (2, 16, 8), 'blocks.11' (2, 16, 8) (of 12 blocks, spread over the depth)"
    )
    choose_layers(loss := ATLoss(), followed(ResNet(stages=3)), followed(Encoder(12)))
    assert loss.teacher == ["blocks.3", "blocks.7", "blocks.11"]


def test_stages_of_equal_size_are_paired():
    teacher = nn.Sequential(*(Block(3 * 2**i, 6 * 2**i, 2) for i in range(4)), nn.Flatten(), nn.Linear(48, 3))
    choose_layers(loss := ATLoss(), followed(ResNet(stages=2)), followed(teacher))
    assert (loss.student, loss.teacher) == (["layer1", "layer2"], ["0", "1"])  # 8 x 8 and 4 x 4


@pytest.mark.parametrize("heads", [1, 2])
def test_the_features_before_the_heads_and_not_a_head(heads):
    assert chosen(RKDLoss, Encoder(2, heads=heads)) == "norm"


def test_what_only_pooling_keeps_from_the_output_is_the_output():
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    assert chosen(RKDLoss, net) == "1"
    assert chosen(HintLoss, net) == "1"


def test_a_learned_temperature_behind_the_head_does_not_make_it_the_features():
    class Scaled(ResNet):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(2.0))
            self.pooled = nn.Identity()

        def forward(self, x):
            return self.fc(self.pooled(self.features(x).mean((2, 3)))) * self.scale.exp()

    assert chosen(RKDLoss, Scaled()) == "pooled"


class Towers(nn.Module):
    def __init__(self):
        super().__init__()
        self.seen, self.read = ResNet(head=nn.Linear(16, 5)), Encoder(2)
        self.read.heads = nn.ModuleList([nn.Linear(8, 5)])

    def forward(self, x):
        return self.seen(x) @ self.read(x).T


@pytest.mark.parametrize(
    ("make", "named"), [(RKDLoss, r"'seen' \(2, 5\), 'read' \(2, 5\)"), (HintLoss, "'seen.layer3'")]
)
def test_of_two_towers_one_has_to_be_named(make, named):
    with pytest.raises(ValueError, match=f"several that it could read, which run beside each other: .*{named}"):
        chosen(make, Towers())


def test_the_account_of_the_network_itself_comes_first():
    class Telling(ResNet):
        feature_info = [{"module": name} for name in ("stem", "layer1", "layer2.0")]

    class Returning(ResNet):
        return_layers = {"layer3.0": "out"}

    assert chosen(ATLoss, Telling()) == ["layer1", "layer2.0"]
    assert chosen(ATLoss, Returning()) == ["layer1", "layer2", "layer3.0"]


def test_both_ends_are_told_with_their_shapes(monkeypatch):
    told = []
    monkeypatch.setattr(setup, "rank_zero_info", told.append)
    support.fit(support.module(losses=[HintLoss()]), max_epochs=1)
    assert told == ["Part 'hint' reads student 'features' (2, 3, 4, 4) and teacher 'features' (2, 8, 4, 4)."]


class DropPath(nn.Module):
    """Drops whole samples in training, as those of timm, torchvision and transformers do."""

    def forward(self, x):
        if not self.training:
            return x
        return x * (torch.rand(len(x), *[1] * (x.ndim - 1)) > 0.5) * 2


class Doubles(nn.Module):
    """A layer without weights that works in place has a value of its own."""

    def forward(self, x):
        return x.mul_(2)


class Dropping(nn.Module):
    """What drops stands nearer to the top of the network than what made the value."""

    def __init__(self, drop, pooled):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(nn.ReLU(), nn.Conv2d(4, 6, 3)))
        self.drop, self.head, self.pooled = drop, nn.Linear(6, 3), pooled

    def forward(self, x):
        for part in self.body:
            x = part(x)
        return self.head(self.drop(x.mean((2, 3))) if self.pooled else self.drop(x).mean((2, 3)))


@pytest.mark.parametrize("pooled", [True, False])
@pytest.mark.parametrize("make", [HintLoss, RKDLoss, ATLoss])
@pytest.mark.parametrize("drop", [nn.FeatureAlphaDropout, DropPath])
def test_what_drops_in_training_alone_is_no_layer_to_read(drop, make, pooled):
    assert chosen(make, Dropping(drop(), pooled)) == chosen(make, Dropping(nn.Dropout(), pooled))
    assert "drop" not in chosen(make, Dropping(drop(), pooled))


def test_what_changes_its_input_in_place_is_one():
    assert chosen(HintLoss, Dropping(Doubles(), pooled=False)) == "drop"
