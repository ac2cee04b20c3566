"""The networks of the CIFAR-100 table: published sizes, named layers, wiring, and how they are initialised."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_kd.data import cifar_models
from lightning_kd.data.networks.cifar_net import CifarNet
from lightning_kd.data.networks.cifar_resnet import WideResNet

THIN = [(16, 32), (16, 32), (32, 16), (64, 8)]  # channels and side of the stem's map and of each stage's
WIDE = [(32, 32), (64, 32), (128, 16), (256, 8)]
VGG = [(64, 32), (128, 16), (256, 8), (512, 4), (512, 4)]
# parameters for 100 classes as everybody publishes them, maps, and length of the embedding
NETWORKS = {
    "resnet8": (83_892, THIN, 64),
    "resnet14": (181_108, THIN, 64),
    "resnet20": (278_324, THIN, 64),
    "resnet32": (472_756, THIN, 64),
    "resnet44": (667_188, THIN, 64),
    "resnet56": (861_620, THIN, 64),
    "resnet110": (1_736_564, THIN, 64),
    "resnet8x4": (1_233_540, WIDE, 256),
    "resnet32x4": (7_433_860, WIDE, 256),
    "resnet50": (23_705_252, [(64, 32), (256, 32), (512, 16), (1024, 8), (2048, 4)], 2048),
    "wrn_16_1": (180_916, THIN, 64),
    "wrn_16_2": (703_284, [(16, 32), (32, 32), (64, 16), (128, 8)], 128),
    "wrn_40_1": (569_780, THIN, 64),
    "wrn_40_2": (2_255_156, [(16, 32), (32, 32), (64, 16), (128, 8)], 128),
    "vgg8": (3_965_028, VGG, 512),
    "vgg13": (9_462_180, VGG, 512),
    "mobilenet_v2": (812_836, [(16, 16), (12, 16), (16, 8), (48, 4), (160, 2)], 1280),
    "shufflenet_v1": (949_258, [(24, 32), (240, 16), (480, 8), (960, 4)], 960),
    "shufflenet_v2": (1_355_528, [(24, 32), (116, 16), (232, 8), (464, 4)], 1024),
}
SMALL = ["resnet8", "resnet50", "wrn_16_1", "wrn_16_2", "vgg8", "mobilenet_v2", "shufflenet_v1", "shufflenet_v2"]


def lively(name):
    """A network in eval mode whose norms shift and scale, as after training."""
    torch.manual_seed(0)
    net = getattr(cifar_models, name)()
    for norm in (one for one in net.modules() if isinstance(one, nn.BatchNorm2d)):
        for tensor, low, high in ((norm.weight, 0.5, 1.5), (norm.running_var, 0.5, 1.5), (norm.bias, -0.5, 0.5)):
            nn.init.uniform_(tensor, low, high)
        nn.init.uniform_(norm.running_mean, -0.5, 0.5)
    return net.eval()


def run(net):
    """Return the images, and what each named layer made of them, as the forward pass left it."""
    seen = {}
    for name, layer in net.named_modules():
        if name and ("." not in name or name.endswith("pre_activation")):
            layer.register_forward_hook(lambda m, a, out, name=name: seen.update({name: out}))
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        seen["output"] = net(images)
    return images, seen


def test_every_network_is_listed():
    made = {name for name in dir(cifar_models) if not name.startswith("_")}
    assert made == NETWORKS.keys()


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_have_the_published_sizes_and_the_named_layers(name):
    parameters, maps, embedding = NETWORKS[name]
    net = lively(name)
    assert sum(one.numel() for one in net.parameters()) == parameters
    _, seen = run(net)
    names = ["stem", *(f"stage{number}" for number in range(1, len(maps)))]
    assert [tuple(seen[one].shape[1:]) for one in names] == [(width, side, side) for width, side in maps]
    for one in names[1:]:
        assert seen[f"{one}.pre_activation"].shape == seen[one].shape
    assert seen["embedding"].shape == (2, embedding)
    assert torch.equal(seen["head"], seen["output"])
    assert seen["output"].shape == (2, 100)
    assert getattr(cifar_models, name)(num_classes=7).head.out_features == 7


@pytest.mark.parametrize("name", SMALL)
def test_pre_activation_is_the_map_before_the_last_relu_and_nothing_overwrites_it(name):
    net = lively(name)
    _, seen = run(net)
    for stage in [one for one in seen if one.startswith("stage") and "." not in one]:
        before, after = seen[f"{stage}.pre_activation"], seen[stage]
        assert before.min() < 0
        if name == "mobilenet_v2":
            assert torch.equal(before, after)
        elif name.startswith("wrn"):
            torch.testing.assert_close(before, net.get_submodule(f"{stage}.pre_activation")(after))
        elif name == "shufflenet_v2":
            dealt = before.relu().unflatten(1, (2, -1))
            assert torch.equal(after[:, 0::2], dealt[:, 0])
            assert torch.equal(after[:, 1::2], dealt[:, 1])
        else:
            assert torch.equal(after, before.relu())
    assert not any(one.inplace for one in net.modules() if isinstance(one, nn.ReLU))


class Layers:
    """Convolutions and norms of a network in the order in which it runs them, shortcuts after what they go around."""

    def __init__(self, net):
        self.convolutions = [one for one in net.modules() if isinstance(one, nn.Conv2d)]
        self.norms = [one for one in net.modules() if isinstance(one, nn.BatchNorm2d)]

    def conv(self, x):
        return self.convolutions.pop(0)(x)

    def norm(self, x):
        return self.norms.pop(0)(x)

    def both(self, x):
        return self.norm(self.conv(x))

    def active(self, x):
        return self.both(x).relu()


def wide(layers, images, widths):
    x = layers.conv(images)
    for width in widths:
        for _ in range(2):
            before = layers.norm(x).relu()
            changed = layers.conv(layers.norm(layers.conv(before)).relu())
            x = changed + (x if x.shape[1] == width else layers.conv(before))
    return layers.norm(x).relu()


def thin(layers, images):
    x = layers.active(images)
    for width in (16, 32, 64):
        for _ in range(2):
            changed = layers.both(layers.active(x))
            x = (changed + (x if x.shape[1] == width else layers.both(x))).relu()
    return x


def bottleneck(layers, images):
    x = layers.active(images)
    for depth in (3, 4, 6, 3):
        for block in range(depth):
            changed = layers.both(layers.active(layers.active(x)))
            x = (changed + (x if block else layers.both(x))).relu()
    return x


def vgg(layers, images):
    x = images
    for block in range(5):
        x = F.max_pool2d(x, 2) if 0 < block < 4 else x
        x = layers.active(layers.active(x))
    return x


def mobile(layers, images):
    x = layers.active(images)
    for _ in range(17):
        changed = layers.both(layers.active(layers.active(x)))
        x = changed + x if changed.shape == x.shape else changed
    return layers.active(x)


def deal(x, groups):
    return torch.stack(x.chunk(groups, dim=1), dim=2).flatten(1, 2)


def shuffle_one(layers, images):
    x = layers.active(images)
    for stage, depth in enumerate((4, 8, 4)):
        for block in range(depth):
            changed = deal(layers.active(x), 3 if stage or block else 1)
            changed = layers.both(layers.active(changed))
            x = (changed + x if block else torch.cat([changed, F.avg_pool2d(x, 3, 2, 1)], dim=1)).relu()
    return x


def shuffle_two(layers, images):
    x = layers.active(images)
    for depth in (4, 8, 4):
        left = layers.active(layers.both(x))
        right = layers.active(layers.both(layers.active(x)))
        x = deal(torch.cat([left, right], dim=1), 2)
        for _ in range(depth - 1):
            kept, changed = x.chunk(2, dim=1)
            x = deal(torch.cat([kept, layers.active(layers.both(layers.active(changed)))], dim=1), 2)
    return layers.active(x)


@pytest.mark.parametrize(
    ("name", "written_out"),
    [
        ("resnet14", thin),
        ("resnet50", bottleneck),
        ("wrn_16_1", partial(wide, widths=(16, 32, 64))),
        ("wrn_16_2", partial(wide, widths=(32, 64, 128))),
        ("vgg13", vgg),
        ("mobilenet_v2", mobile),
        ("shufflenet_v1", shuffle_one),
        ("shufflenet_v2", shuffle_two),
    ],
)
def test_networks_are_wired_as_published(name, written_out):
    net = lively(name)
    images, seen = run(net)
    layers = Layers(net)
    with torch.no_grad():
        embedding = written_out(layers, images).mean(dim=(2, 3))
        torch.testing.assert_close(seen["embedding"], embedding)
        torch.testing.assert_close(seen["output"], net.head(embedding))
    assert not layers.convolutions + layers.norms


@pytest.mark.parametrize("name", SMALL)
def test_weights_are_drawn_as_in_the_published_recipes(name):
    torch.manual_seed(0)
    net = getattr(cifar_models, name)()
    widest = max((one for one in net.modules() if isinstance(one, nn.Conv2d)), key=lambda one: one.weight.numel())
    outputs = widest.out_channels * widest.kernel_size[0] ** 2
    inputs = widest.in_channels // widest.groups * widest.kernel_size[0] ** 2
    default = (1 / inputs / 3) ** 0.5  # of PyTorch's own uniform distribution
    expected = default if name.startswith("shufflenet") else (2 / outputs) ** 0.5
    assert widest.weight.std().item() == pytest.approx(expected, rel=0.05)
    assert bool(net.head.bias.any()) == name.startswith(("resnet", "shufflenet"))
    if name in ("vgg8", "mobilenet_v2"):
        assert net.head.weight.std().item() == pytest.approx(0.01, rel=0.05)
        assert not any(one.bias.any() for one in net.modules() if isinstance(one, nn.Conv2d) and one.bias is not None)


@pytest.mark.parametrize("name", ["resnet8", "wrn_16_1", "vgg8", "shufflenet_v1"])
def test_a_network_without_classes_is_refused(name):
    with pytest.raises(ValueError, match="num_classes >= 1, got 0"):
        getattr(cifar_models, name)(num_classes=0)


@pytest.mark.parametrize("depth", [4, 15])
def test_a_depth_that_no_wide_network_has_is_refused(depth):
    with pytest.raises(ValueError, match=rf"depth 10, 16, 22, \.\.\., got {depth}"):
        WideResNet(depth, 1)


def test_the_container_refuses_no_classes():
    with pytest.raises(ValueError, match="num_classes >= 1, got -1"):
        CifarNet(nn.Identity(), [], 3, num_classes=-1)
