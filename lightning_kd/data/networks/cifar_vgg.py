"""VGG networks with batch normalisation for 32 x 32 images."""

from collections.abc import Sequence

from torch import nn

from lightning_kd.data.networks.cifar_net import CifarNet, chain, convolution, initialise, stage

_WIDTHS = (64, 128, 256, 512, 512)


def vgg8(num_classes: int = 100) -> nn.Module:
    """VGG-8: one convolution each in the stem and in four stages (3.97 million parameters)."""
    return _vgg((1, 1, 1, 1, 1), num_classes)


def vgg13(num_classes: int = 100) -> nn.Module:
    """VGG-13: two convolutions each in the stem and in four stages (9.46 million parameters)."""
    return _vgg((2, 2, 2, 2, 2), num_classes)


def _vgg(depths: Sequence[int], num_classes: int) -> nn.Module:
    """Convolve in five blocks, the first of which is the stem, halving the map between all but the last two."""
    channels, blocks = 3, []
    for width, depth in zip(_WIDTHS, depths, strict=True):
        layers: list[nn.Module] = []
        for _ in range(depth):
            layers += [convolution(channels, width, bias=True), nn.BatchNorm2d(width)]
            channels = width
        blocks.append(chain(*layers))
    pools = [nn.MaxPool2d(2), nn.MaxPool2d(2), nn.MaxPool2d(2), None]
    stages = [stage([block], first=pool) for block, pool in zip(blocks[1:], pools, strict=True)]
    net = CifarNet(nn.Sequential(blocks[0], nn.ReLU()), stages, channels, num_classes)
    initialise(net, head_std=0.01, head_bias=False)
    return net
