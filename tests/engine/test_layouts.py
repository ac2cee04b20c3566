"""What the axes of a layer mean: found, said by the user, or asked for."""

import pytest
import torch
from torch import nn

from lightning_kd import Batch, DistillationCallback, DistillationModule
from lightning_kd.capture.axes import find_axes
from lightning_kd.capture.followed import following, natural_axis
from lightning_kd.capture.layout import View
from lightning_kd.capture.seen import patch_grid
from lightning_kd.losses import (
    ATLoss,
    CTKDLoss,
    DKDLoss,
    FTLoss,
    HintLoss,
    KDLoss,
    MLKDLoss,
    MutualLearning,
    NKDLoss,
    RKDLoss,
    WSLDLoss,
)
from tests import support


class Opaque(nn.Module):
    """Holds no module that tells what its axes mean."""

    def __init__(self, order):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(5, 1))
        self.order = order

    def forward(self, x):
        return torch.einsum(f"bchw,kc->b{self.order}", x, self.weight)


class Net(nn.Module):
    def __init__(self, order="khw"):
        super().__init__()
        self.body, self.head = Opaque(order), nn.Linear(80, support.CLASSES)

    def forward(self, x):
        return self.head(self.body(x).flatten(1))


def fit(loss, door="module", net=None):
    guide = Net()
    if door == "module":
        made, callbacks = support.module(net or Net(), teacher=guide, losses=[loss]), []
    else:
        made, callbacks = support.UserModule(net or Net()), [DistillationCallback(guide, [loss], student="net")]
    return support.fit(made, callbacks=callbacks, max_epochs=1)


@pytest.mark.parametrize("door", ["module", "callback"])
def test_a_layer_that_tells_nothing_is_asked_for(door):
    words = r"HintLoss, student layer 'body' of shape \(2, 5, 4, 4\).*HintLoss\(\.\.\., layout='NCHW'\)"
    with pytest.raises(ValueError, match=words):
        fit(HintLoss("body", "body"), door)
    fit(HintLoss("body", "body", layout="NCHW"), door)


def test_a_layout_may_be_said_of_one_layer():
    class Named(Net):
        def __init__(self):
            super().__init__("hwk")
            self.inner = self.body

    loss = HintLoss("inner", "body", layout={"inner": "NHWC", "body": "NCHW"})
    fit(loss, net=Named())
    assert loss.projectors[0].conv.in_channels == 5


def test_a_loss_of_whole_samples_needs_no_layout():
    fit(RKDLoss("body", "body"))


@pytest.mark.parametrize(("layout", "words"), [("NCL", r"'NCL' names 3 axes, but there are 4"), ("BHWC", "got 'BHWC'")])
def test_a_layout_that_cannot_be_is_refused(layout, words):
    with pytest.raises(ValueError, match=words):
        fit(ATLoss("body", "body", layout=layout))


def test_a_checkpoint_holds_how_layers_are_read(tmp_path):
    module = support.module(Net("hwk"), teacher=Net("hwk"), losses=[HintLoss("body", "body", layout="NHWC")])
    trainer = support.fit(module, max_epochs=1)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    again = DistillationModule.load_from_checkpoint(
        tmp_path / "a.ckpt", student=Net("hwk"), teacher=Net("hwk"), task_loss=nn.CrossEntropyLoss()
    )
    (loss,) = again.run.objective.components
    assert loss.views["student"]["body"] == View("NHWC")
    assert loss.layout == "NHWC"


@pytest.mark.parametrize(
    ("tokens", "size", "expected"),
    [
        (197, (224, 224), (1, (14, 14))),
        (196, (224, 224), (0, (14, 14))),
        (198, (224, 224), (2, (14, 14))),
        (261, (224, 224), (5, (16, 16))),  # DINOv2 with four registers: patches of 14 pixels
        (9, (32, 16), (1, (4, 2))),
        (7, (32, 32), (3, (2, 2))),
    ],
)
def test_the_grid_of_patches_follows_from_the_image(tokens, size, expected):
    assert patch_grid(tokens, size) == expected


class LayerNorm2d(nn.LayerNorm):
    """As timm and torchvision have it: of maps, with the channels on axis 1."""

    def forward(self, x):
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def test_a_norm_of_maps_has_the_channels_first_whatever_it_derives_from():
    norm = LayerNorm2d(5)
    assert natural_axis(norm, norm(torch.zeros(2, 5, 3, 3))) == 1
    assert natural_axis(norm, torch.zeros(2, 3, 3, 5)) == 3  # its name does not tell, its class does


class Patches(nn.Module):
    """Tokens of an image, out of a convolution or not."""

    def __init__(self, convolves):
        super().__init__()
        self.convolve = nn.Conv2d(3, 4, 8, 8) if convolves else None
        self.mix = nn.Linear(4 if convolves else 192, 4)

    def forward(self, x):
        tokens = x.flatten(1).unflatten(1, (16, 192)) if self.convolve is None else self.convolve(x).flatten(2).mT
        return self.mix(tokens)


@pytest.mark.parametrize(("convolves", "grid"), [(True, (4, 4)), (False, None)])
def test_tokens_are_patches_only_where_a_module_has_made_a_map_of_them(convolves, grid):
    net, image = Patches(convolves), torch.zeros(2, 3, 32, 32)
    with following(net) as once:
        net(image)
    with following(net) as more:
        net(torch.zeros(3, 3, 32, 32))
    assert find_axes(["mix"], once, more, 2, (32, 32))["mix"].grid == grid


class Graph(nn.Module):
    """Takes what cannot be called with one sample more; its layer has as many positions as there are samples."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Conv1d(1, 5, 1), nn.Linear(10, support.CLASSES)

    def forward(self, x):
        if len(x) != 2:
            raise RuntimeError("only two nodes")
        return self.head(self.body(x.flatten(2)[:, :, :2]).flatten(1))


def test_a_batch_axis_that_could_be_two_is_asked_for():
    module = DistillationModule(Graph(), Graph(), [HintLoss("body", "body")])
    with pytest.raises(ValueError, match=r"layer 'body' of shape \(2, 5, 2\): which axis holds the samples.*layout="):
        module.prepare((torch.zeros(2, 1, 4, 4), torch.zeros(2).long()))
    module = DistillationModule(Graph(), Graph(), [HintLoss("body", "body", layout="NCL")])
    module.prepare((torch.zeros(2, 1, 4, 4), torch.zeros(2).long()))


class OfList(nn.Module):
    """Takes a list of images, as detectors do."""

    def __init__(self):
        super().__init__()
        self.body = nn.Conv2d(3, 5, 1)

    def forward(self, images):
        return self.body(torch.stack(images)).mean((2, 3))


def test_a_list_of_images_holds_a_sample_each():
    class Listed(DistillationModule):
        def unpack_batch(self, batch):
            return Batch(args=(batch,))

    module = Listed(OfList(), OfList(), [HintLoss("body", "body")])
    module.prepare([torch.zeros(3, 4, 4) for _ in range(2)])
    assert module.losses["hint"].projectors[0].conv.in_channels == 5


class Channels(nn.Module):
    """Maps with as many channels as rows, by a permutation."""

    def __init__(self, last):
        super().__init__()
        self.conv, self.last = nn.Conv2d(1, 3, 1), last

    def forward(self, x):
        x = self.conv(x)
        return x.permute(0, 2, 3, 1) if self.last else x


class Pooled(nn.Module):
    def __init__(self, last):
        super().__init__()
        self.body, self.last, self.head = Channels(last), last, nn.Linear(3, support.CLASSES)

    def forward(self, x):
        return self.head(self.body(x).mean((1, 2) if self.last else (2, 3)))


def test_a_first_stage_reads_the_same_order():
    values = []
    for last in (False, True):
        guide = support.seeded(lambda last=last: Pooled(last), 1)
        module = DistillationModule(
            support.seeded(lambda: Pooled(False), 0), guide, [FTLoss("body", "body", stage_length=2)]
        )
        batch = (torch.randn(4, 1, 5, 5, generator=torch.Generator().manual_seed(0)), torch.zeros(4).long())
        torch.manual_seed(2)
        module.prepare(batch)
        values.append(module.training_step(batch, 0).item())
    assert values[1] == pytest.approx(values[0], rel=1e-5)


class WithMask(DistillationModule):
    def unpack_batch(self, batch):
        x, y, *rest = batch
        return Batch(args=(x,), target=y, mask=rest[0] if rest else None)


def masked(losses, *batch):
    nets = [support.seeded(lambda w=w: support.StagedNet(w, norm=False), w) for w in (3, 8)]
    module = WithMask(*nets, losses, task_loss=None)
    torch.manual_seed(2)
    module.prepare(batch[:2])
    return module.training_step(batch, 0).item()


@pytest.mark.parametrize(
    "make",
    [
        KDLoss,
        DKDLoss,
        NKDLoss,
        WSLDLoss,
        MLKDLoss,
        CTKDLoss,
        lambda: HintLoss("stage1", "stage1"),
        lambda: ATLoss("stage1", "stage1"),
        lambda: RKDLoss("embedding", "embedding"),
        lambda: MutualLearning([support.seeded(lambda: support.StagedNet(3, norm=False), 9)]),
    ],
)
def test_samples_that_do_not_count_are_left_out_of_every_loss(make):
    x, y = support.data(8).tensors
    mask = torch.tensor([True, False] * 4)
    assert masked([make()], x, y, mask) == pytest.approx(masked([make()], x[mask], y[mask]), rel=1e-5)


def test_a_mask_of_tokens_leaves_maps_alone():
    x, y = support.data(8).tensors
    tokens = torch.ones(8, 4, dtype=torch.bool)  # a text beside the image, of as many tokens as the maps have rows
    tokens[:, 2:] = False
    for make in (lambda: HintLoss("stage1", "stage1"), lambda: ATLoss("stage1", "stage1")):
        assert masked([make()], x, y, tokens) == masked([make()], x, y)


def channel_axis(net, layer, *inputs):
    """Return the axis of the channels that is found for a layer."""
    with following(net) as once:
        net(*inputs)
    with following(net) as more:
        net(*(torch.cat([x, x[:1]]) for x in inputs))
    return find_axes([layer], once, more, len(inputs[0]), None)[layer].channels


class Part(nn.Module):
    """A network of one part that is followed by others."""

    def __init__(self, body, *after):
        super().__init__()
        self.body, self.after = body, nn.Sequential(*after)

    def forward(self, x):
        return self.after(self.body(x))


class Permuted(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv = nn.Conv2d(1, width, 1)

    def forward(self, x):
        return self.conv(x).permute(0, 2, 3, 1).relu()


class Joined(nn.Module):
    """Two branches, one after the other along the channels."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(1, 3, 1), nn.Conv2d(1, 2, 1)

    def forward(self, x):
        return torch.cat([self.one(x), self.two(x)], dim=1)


class Added(nn.Module):
    """An activation of a sum, which no module has returned."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.act = nn.Conv2d(1, 3, 1), nn.Conv2d(1, 3, 1), nn.ReLU()

    def forward(self, x):
        return self.act(self.one(x) + self.two(x)).mean((2, 3))


@pytest.mark.parametrize("width", [3, 5], ids=["other sizes", "as many channels as rows and columns"])
def test_a_permutation_is_followed_by_size_or_by_strides(width):
    assert channel_axis(Part(Permuted(width)), "body", torch.randn(2, 1, 5, 5)) == 3


def test_branches_tell_what_their_sum_or_their_row_means():
    assert channel_axis(Part(Joined()), "body", torch.randn(2, 1, 5, 5)) == 1
    assert channel_axis(Added(), "act", torch.randn(2, 1, 5, 5)) == 1


@pytest.mark.parametrize("between", [[], [nn.GELU()], [nn.GELU(), nn.Dropout()]], ids=len)
def test_the_module_that_takes_a_value_tells(between):
    assert channel_axis(Part(Opaque("khw"), *between, nn.Conv2d(5, 2, 1)), "body", torch.randn(2, 1, 4, 4)) == 1
    assert channel_axis(Part(Opaque("hwk"), *between, nn.Linear(5, 2)), "body", torch.randn(2, 1, 4, 4)) == 3


class Steps(nn.Module):
    """Takes sequences with the steps first, (L, B, C)."""

    def __init__(self, width):
        super().__init__()
        self.body, self.head = nn.GRU(3, width), nn.Linear(width, support.CLASSES)

    def forward(self, x):
        return self.head(self.body(x)[0][-1])


def test_inputs_may_have_the_steps_first():
    module = DistillationModule(Steps(4), Steps(6), [RKDLoss("body", "body")])
    module.prepare((torch.randn(7, 4, 3), torch.zeros(4).long()))
    assert module.losses["rkd"].views["student"]["body"].order == "LNC"


class Vit(nn.Module):
    """Patches as tokens after a class token, mixed by a linear layer."""

    def __init__(self, width, patch, image=True):
        super().__init__()
        self.convolve = nn.Conv2d(3, width, patch, patch)
        self.prefix = nn.Parameter(torch.zeros(1, 1, width)) if image else nn.Parameter(torch.zeros(1, 13, width))
        self.body, self.head = nn.Linear(width, width), nn.Linear(width, support.CLASSES)

    def forward(self, x):
        tokens = self.convolve(x).flatten(2).mT
        return self.head(self.body(torch.cat([self.prefix.expand(len(x), -1, -1), tokens], 1)).mean(1))


def prepared(loss, *nets, shape=(3, 32, 32)):
    module = DistillationModule(*nets, [loss])
    module.prepare((torch.randn(4, *shape), torch.zeros(4).long()))
    return next(iter(module.losses.values()))


def test_tokens_of_other_patches_are_pooled_as_maps():
    views = prepared(HintLoss("body", "body"), Vit(4, 8), Vit(6, 4)).views
    assert (views["student"]["body"].grid, views["teacher"]["body"].grid) == ((4, 4), (8, 8))
    assert views["student"]["body"].as_map


class Words(nn.Module):
    """Tokens that are no patches of an image."""

    def __init__(self, width=4):
        super().__init__()
        self.body, self.head = nn.Linear(3 * 32, width), nn.Linear(width, support.CLASSES)

    def forward(self, x):
        return self.head(self.body(x.transpose(1, 2).flatten(2)).mean(1))


@pytest.mark.parametrize("loss", [ATLoss, HintLoss])
def test_patches_are_not_compared_with_other_tokens_or_such_with_maps(loss):
    with pytest.raises(ValueError, match=r"only if they are the patches of an image|number of tokens"):
        prepared(loss("body", "body"), Words(), Vit(6, 4))
    with pytest.raises(ValueError, match="only if they are the patches of an image"):
        prepared(loss("body", "convolve"), Words(), Vit(6, 4))


def test_a_loss_of_planes_refuses_other_tokens():
    with pytest.raises(ValueError, match=r"neighbours in a plane.*no patches"):
        prepared(FTLoss("body", "body", stage_length=0), Words(), Words(6))


class Volume(nn.Module):
    def __init__(self, stride):
        super().__init__()
        self.body, self.head = nn.Conv3d(1, 4, 1, stride), nn.Linear(4, support.CLASSES)

    def forward(self, x):
        return self.head(self.body(x).mean((2, 3, 4)))


def test_volumes_of_other_sizes_are_refused():
    prepared(HintLoss("body", "body"), Volume(1), Volume(1), shape=(1, 4, 4, 4))
    with pytest.raises(ValueError, match="same depth, height and width"):
        prepared(HintLoss("body", "body"), Volume(1), Volume(2), shape=(1, 4, 4, 4))


class Windowed(nn.Module):
    """Cuts a map into four windows of a sample, which stand one after another along the batch axis."""

    def __init__(self, stride):
        super().__init__()
        self.body, self.head = nn.Conv2d(1, 4, 1, stride), nn.Linear(4, support.CLASSES)

    def forward(self, x):
        rows = len(x)
        x = x.unflatten(2, (2, -1)).unflatten(4, (2, -1)).permute(0, 2, 4, 1, 3, 5).flatten(0, 2)
        return self.head(self.body(x).mean((2, 3)).unflatten(0, (rows, 4)).mean(1))


def test_windows_whose_sizes_do_not_nest_are_refused():
    prepared(HintLoss("body", "body"), Windowed(1), Windowed(2), shape=(1, 12, 12))
    with pytest.raises(ValueError, match="windows are folded"):
        prepared(HintLoss("body", "body"), Windowed(1), Windowed(4), shape=(1, 10, 10))


def test_a_mask_of_another_length_is_refused():
    module = WithMask(Words(), Words(), [HintLoss("body", "body")])
    batch = torch.randn(4, 3, 32, 32), torch.zeros(4).long(), torch.ones(4, 9).bool()
    with pytest.raises(ValueError, match=r"mask of the batch has the shape \(4, 9\), but the student's layer 'body'"):
        module.prepare(batch)


def test_a_mask_of_tokens_leaves_channels_last_maps_alone():
    batch = torch.randn(4, 1, 5, 5, generator=torch.Generator().manual_seed(0)), torch.zeros(4).long()
    values = []
    for mask in ([], [torch.arange(5).expand(4, 5) < 2]):
        nets = [support.seeded(lambda: Pooled(True), seed) for seed in (0, 1)]
        module = WithMask(*nets, [ATLoss("body", "body")])
        module.prepare(batch)
        values.append(module.training_step((*batch, *mask), 0).item())
    assert values[0] == values[1]
