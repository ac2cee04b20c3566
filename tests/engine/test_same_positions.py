"""Positions are followed through the operations of a network: where the channels are, and which pixel is where."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss, normalize, pad, scaled_dot_product_attention
from torch.utils.data import DataLoader, TensorDataset

from lightning_kd import DistillationModule
from lightning_kd.capture.followed import following
from lightning_kd.capture.places import rows_and_columns
from lightning_kd.losses import ATLoss, HintLoss
from lightning_kd.projectors import IdentityProjector
from tests import support

WIDTH = 8


class Mix(nn.Module):
    """A layer of plain operations: no module inside tells where its channels are."""

    def __init__(self, product):
        super().__init__()
        self.weight, self.product = nn.Parameter(torch.randn(WIDTH, WIDTH) * 0.3), product

    def forward(self, x):
        return torch.relu(self.product(x, self.weight))


class Last(nn.Module):
    """The channels are last from the stem on, and as many as rows and columns."""

    def __init__(self, product=torch.matmul, stem=None):
        super().__init__()
        self.stem = nn.Conv2d(3, WIDTH, 2, stride=2) if stem is None else stem
        self.one, self.two, self.head = Mix(product), Mix(product), nn.Linear(WIDTH, support.CLASSES)

    def forward(self, x):
        x = self.two(self.one(self.stem(x).movedim(1, -1)))
        return self.head(x.flatten(1, -2).mean(1))


class Sequence(Last):
    def __init__(self):
        super().__init__(stem=nn.Conv1d(3, WIDTH, 2, stride=2))


class Pointwise(nn.Module):
    """Mixes the positions of tokens that a linear layer has made; as many tokens as channels."""

    def __init__(self):
        super().__init__()
        self.linear, self.weight = nn.Linear(3, WIDTH), nn.Parameter(torch.randn(WIDTH, WIDTH))

    def forward(self, x):
        return self.linear(x).transpose(1, 2) @ self.weight


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.mix, self.head = Pointwise(), nn.Linear(WIDTH, support.CLASSES)

    def forward(self, x):
        return self.head(self.mix(x).mean(2))


def values(net, layer, x):
    found = {}
    handle = net.get_submodule(layer).register_forward_hook(lambda *call: found.update(value=call[2]))
    with torch.no_grad():
        net(x)
    handle.remove()
    return found["value"]


def attention(value, axis):
    return normalize(value.pow(2).mean(axis).flatten(1), dim=1)


def fitted(student, teacher, loss, x):
    """The value of a loss in a fit that learns nothing."""
    data = DataLoader(TensorDataset(x, torch.zeros(len(x), dtype=torch.long)), batch_size=len(x))
    still = partial(torch.optim.SGD, lr=0.0)
    module = DistillationModule(student, teacher, [loss], task_loss=nn.CrossEntropyLoss(), optimizer=still)
    made = support.fit(module, train=data, val=data, max_epochs=1)
    return next(made.callback_metrics[name] for name in made.callback_metrics if name in ("train/at", "train/hint"))


def two(make):
    return support.seeded(make, 1).train(), support.seeded(make, 2).eval()


def einsum(x, w):
    return torch.einsum("bhwc,cd->bhwd", x, w)


@pytest.mark.parametrize("layer", ["one", "two"])
@pytest.mark.parametrize(
    ("make", "shape"),
    [(Last, (4, 3, 16, 16)), (partial(Last, einsum), (4, 3, 16, 16)), (Sequence, (4, 3, 16)), (Sequence, (4, 3, 20))],
)
def test_the_channels_are_found_behind_a_permutation(make, shape, layer):
    student, teacher = two(make)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    mine, yours = (attention(values(net, layer, x), -1) for net in (student, teacher))
    torch.testing.assert_close(fitted(student, teacher, ATLoss(layer, layer), x), mse_loss(mine, yours))


def unseen(x, w):
    return torch.tensordot(x, w, dims=1)


def test_equal_sizes_are_no_evidence_where_the_way_is_not_followed():
    student, teacher = two(partial(Last, unseen))
    x = torch.randn(4, 3, 16, 16)
    with pytest.raises(ValueError, match=r"which axis holds the channels cannot be known.*layout='NCHW'"):
        fitted(student, teacher, ATLoss("two", "two"), x)
    mine, yours = (attention(values(net, "two", x), -1) for net in (student, teacher))
    found = fitted(student, teacher, ATLoss("two", "two", layout="NHWC"), x)
    torch.testing.assert_close(found, mse_loss(mine, yours))


def test_a_module_inside_is_no_evidence_either():
    with pytest.raises(ValueError, match=r"'mix' of shape \(2, 8, 8\): which axis holds the channels cannot be known"):
        fitted(*two(Tokens), ATLoss("mix", "mix"), torch.randn(4, WIDTH, 3))


class Attend(nn.Module):
    """Attention of the positions of each window, (..., positions, C)."""

    def __init__(self, fused):
        super().__init__()
        self.qkv, self.out, self.fused = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH), fused

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        if self.fused:
            return self.out(scaled_dot_product_attention(q, k, v))
        return self.out((q @ k.transpose(-1, -2) / WIDTH**0.5).softmax(-1) @ v)


class Block(nn.Module):
    """Attention in windows of a map (B, H, W, C) that may be rolled; in the batch, or on an axis of their own."""

    def __init__(self, roll, folds, fused):
        super().__init__()
        self.norm, self.attend, self.roll, self.folds = nn.LayerNorm(WIDTH), Attend(fused), roll, folds

    def forward(self, x):
        rolled = self.norm(x).roll((-self.roll, -self.roll), dims=(1, 2))
        windows = rolled.view(len(x), 4, 4, 4, 4, WIDTH).permute(0, 1, 3, 2, 4, 5).reshape(len(x), 16, 16, WIDTH)
        attended = self.attend(windows.flatten(0, 1)) if self.folds else self.attend(windows)
        back = attended.reshape(len(x), 4, 4, 4, 4, WIDTH).permute(0, 1, 3, 2, 4, 5).reshape(rolled.shape)
        return x + back.roll((self.roll, self.roll), dims=(1, 2))


class Windows(nn.Module):
    """As Swin, or MaxViT, have them: 16 windows of 16 positions in a map of 16 rows and columns."""

    def __init__(self, roll=0, folds=False, fused=False):
        super().__init__()
        self.stem, self.block = nn.Conv2d(3, WIDTH, 2, stride=2), Block(roll, folds, fused)
        self.head = nn.Linear(WIDTH, support.CLASSES)

    def forward(self, x):
        return self.head(self.block(self.stem(x).permute(0, 2, 3, 1)).mean((1, 2)))


class Convolutions(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, WIDTH, 2, stride=2), nn.ReLU(), nn.Conv2d(WIDTH, WIDTH, 3, padding=1))
        self.head = nn.Linear(WIDTH, support.CLASSES)

    def forward(self, x):
        return self.head(self.body(x).mean((2, 3)))


IMAGES = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(3))
ORDER = "the positions are in another order"


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("loss", [ATLoss, partial(HintLoss, projector=IdentityProjector())])
def test_windows_are_no_map(loss, fused):
    """Their value (B, windows, positions, C) has four axes, and by its sizes could be a map."""
    windows, maps = two(partial(Windows, fused=fused)), two(Convolutions)
    with pytest.raises(ValueError, match=rf"student layer 'block.attend' .*{ORDER}.*, such as 'block' if"):
        fitted(windows[0], maps[1], loss("block.attend", "body"), IMAGES)
    with pytest.raises(ValueError, match=rf"teacher layer 'block.attend' .*{ORDER}"):
        fitted(maps[0], windows[1], loss("body", "block.attend"), IMAGES)


def test_the_block_around_windows_is_a_map():
    student, teacher = two(Windows)[0], two(Convolutions)[1]
    mine, yours = attention(values(student, "block", IMAGES), -1), attention(values(teacher, "body", IMAGES), 1)
    found = fitted(student, teacher, ATLoss("block", "body"), IMAGES)
    torch.testing.assert_close(found, mse_loss(mine, yours))


@pytest.mark.parametrize("folds", [True, False])
def test_windows_of_a_rolled_map_are_not_compared_with_those_of_another(folds):
    student, teacher = two(partial(Windows, folds=folds))[0], two(partial(Windows, 2, folds))[1]
    with pytest.raises(ValueError, match=rf"student layer .* and teacher layer 'block.attend' .*{ORDER}"):
        fitted(student, teacher, ATLoss("block.attend", "block.attend"), IMAGES)
    fitted(student, teacher, ATLoss("block", "block"), IMAGES)


@pytest.mark.parametrize("folds", [True, False])
@pytest.mark.parametrize("roll", [0, 2])
def test_the_same_windows_are_compared(roll, folds):
    student, teacher = two(partial(Windows, roll, folds))
    both = [values(net, "block.attend", IMAGES).reshape(4, 256, WIDTH) for net in (student, teacher)]
    found = fitted(student, teacher, ATLoss("block.attend", "block.attend"), IMAGES)
    torch.testing.assert_close(found, mse_loss(*(attention(one, -1) for one in both)))


class Stem(nn.Module):
    """A map of a convolution, and what a function makes of it."""

    def __init__(self, then, first=lambda x: x):
        super().__init__()
        self.stem, self.then, self.first = nn.Conv2d(3, 6, 2, stride=2), then, first
        self.mark, self.end = nn.Linear(1, 1), nn.Identity()

    def forward(self, x):
        return self.end(self.then(self.stem(self.first(x))))


def places(then, first=lambda x: x):
    """The positions that the output of a network comes from, two images of 4 x 4 positions."""
    net = Stem(then, first)
    with following(net) as followed:
        made = net(torch.randn(2, 3, 8, 8))
    return followed.places.places(made)


def merge(x):
    """Four neighbours, one after another along the channels, as Swin joins them."""
    last = x.permute(0, 2, 3, 1)
    joined = torch.cat([last[:, i::2, j::2] for i in (0, 1) for j in (0, 1)], dim=-1)
    return torch.nn.functional.linear(joined, torch.ones(5, 24))


def padded(x):
    return torch.nn.functional.conv2d(pad(x, (0, 1, 0, 1)), torch.ones(2, 6, 3, 3), stride=2)


def with_class_token(x):
    return torch.cat([torch.zeros(2, 1, 6), x.flatten(2).mT], dim=1)


def by_attention(x):
    tokens = x.flatten(2).mT
    return torch.einsum("bij,bjd->bid", torch.einsum("bid,bjd->bij", tokens, tokens).softmax(-1), tokens)


@pytest.mark.parametrize(
    ("then", "rows", "columns"),
    [
        (merge, [[0, 0], [1, 1]], [[0, 1], [0, 1]]),
        (lambda x: torch.nn.functional.max_pool2d(x, 2).permute(0, 2, 3, 1), [[0, 0], [1, 1]], [[0, 1], [0, 1]]),
        (lambda x: padded(x).permute(0, 2, 3, 1), [[0, 0], [1, 1]], [[0, 1], [0, 1]]),
        (lambda x: x[:, :, :2, :2].transpose(2, 3).permute(0, 2, 3, 1), [[0, 1], [0, 1]], [[0, 0], [1, 1]]),
        (lambda x: torch.flip(x[:, :, 2:, 2:], (2,)).permute(0, 2, 3, 1), [[1, 1], [0, 0]], [[0, 1], [0, 1]]),
        (lambda x: with_class_token(x)[:, [0, 1, 4, 6]], [-1, 0, 0, 1], [-1, 0, 2, 1]),
        (lambda x: by_attention(x)[:, 3:6], [0, 1, 1], [2, 0, 1]),
        (lambda x: x.add_(1.0).mul(2.0).permute(0, 2, 3, 1)[:, 3:, 1:], [[0, 0, 0]], [[0, 1, 2]]),
    ],
)
def test_positions_are_followed(then, rows, columns):
    found = places(then)
    ranks = rows_and_columns(found)
    assert found.channel_axis(0) == found.numbers.ndim - 1
    assert [one[0, ..., 0].tolist() for one in ranks[1:]] == [rows, columns]
    assert [one[1, ..., 0].tolist() for one in ranks[1:]] == [rows, columns]


@pytest.mark.parametrize(
    "then",
    [
        lambda x: x[:, :, torch.randperm(4).argsort()].sort(dim=2).values,  # values are put in order
        lambda x: x.flatten(2) @ torch.ones(16, 16),  # a product of all positions
        lambda x: x + x.roll(1, 2),  # a sum of two orders
        lambda x: torch.zeros_like(x).copy_(x),  # a memory that was written to
    ],
)
def test_what_is_not_followed_is_not_known(then):
    assert places(then) is None


def test_of_an_image_that_is_turned_before_the_network_nothing_is_known():
    """It may be turned back at the end, as for a mean over flipped images."""
    assert places(lambda x: x.flip(3), first=lambda x: x.flip(3)) is None


class Decoder(nn.Module):
    """A map that is made of one vector for each image."""

    def __init__(self):
        super().__init__()
        self.encode, self.latent = nn.Conv2d(3, WIDTH, 2, stride=2), nn.Linear(WIDTH * 256, WIDTH * 16)
        self.grow, self.head = nn.Conv2d(WIDTH, WIDTH, 3, padding=1), nn.Linear(WIDTH, support.CLASSES)

    def forward(self, x):
        latent = self.latent(self.encode(x).flatten(1)).unflatten(1, (WIDTH, 4, 4))
        return self.head(self.grow(latent).mean((2, 3)))


def test_a_map_made_of_a_vector_is_compared_as_before():
    layers = {Decoder: "grow", Convolutions: "body"}
    for mine, yours in ((Decoder, Convolutions), (Convolutions, Decoder)):
        loss = HintLoss(layers[mine], layers[yours], projector=IdentityProjector())
        fitted(two(mine)[0], two(yours)[1], loss, IMAGES)


class Padded(Convolutions):
    def __init__(self, *edge):
        super().__init__()
        self.body.append(nn.ZeroPad2d(edge))


def test_an_edge_of_padding_is_no_other_order():
    fitted(Padded(1, 0, 1, 0), Padded(0, 1, 0, 1).eval(), HintLoss("body", "body"), IMAGES)


class GeneralizedRCNNTransform(nn.Module):
    """By its name and ``min_size`` the transform of torchvision's detectors."""

    def __init__(self, *sizes):
        super().__init__()
        self.min_size = sizes


class Detector(Convolutions):
    def __init__(self, *sizes):
        super().__init__()
        self.transform = GeneralizedRCNNTransform(*sizes)


def test_a_student_that_draws_the_size_of_its_images_is_refused():
    words = r"HintLoss compares maps position by position.*min_size=\(64, 96\).*Build both with one min_size"
    teacher = Detector(64, 96).eval()
    with pytest.raises(ValueError, match=words):
        fitted(Detector(64, 96), teacher, HintLoss("body", "body"), IMAGES)
    fitted(Detector(96), teacher, HintLoss("body", "body"), IMAGES)
