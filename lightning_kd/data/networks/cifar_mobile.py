"""Networks for small devices, for 32 x 32 images: MobileNetV2 at half width, ShuffleNetV1 and ShuffleNetV2."""

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lightning_kd.data.networks.cifar_net import (
    ChannelShuffle,
    CifarNet,
    Residual,
    chain,
    convolution,
    initialise,
    stage,
)


def mobilenet_v2(num_classes: int = 100) -> nn.Module:
    """MobileNetV2 of half width, expanding six times (0.81 million parameters)."""
    # expansion, channels, blocks, stride
    groups = [(1, 8, 1, 1), (6, 12, 2, 1), (6, 16, 3, 2), (6, 32, 4, 2), (6, 48, 3, 1), (6, 80, 3, 2), (6, 160, 1, 1)]
    channels, made = 16, []
    for expansion, width, depth, stride in groups:
        blocks = []
        for _ in range(depth):
            blocks.append(_inverted(channels, width, stride, expansion))
            channels, stride = width, 1
        made.append(blocks)
    stages = [_linear_stage(made[first:end]) for first, end in ((0, 2), (2, 3), (3, 5), (5, 7))]
    stem = chain(convolution(3, 16, stride=2), nn.BatchNorm2d(16), activated=True)
    last = chain(convolution(channels, 1280, 1), nn.BatchNorm2d(1280), activated=True)
    net = CifarNet(stem, stages, 1280, num_classes, last)
    initialise(net, head_std=0.01, head_bias=False)
    return net


def shufflenet_v1(num_classes: int = 100) -> nn.Module:
    """ShuffleNetV1 with three groups (0.95 million parameters)."""
    channels, stages = 24, []
    for width, depth in ((240, 4), (480, 8), (960, 4)):
        blocks = [_grouped(channels, width - channels, stride=2)]
        blocks += [_grouped(width, width, stride=1) for _ in range(depth - 1)]
        stages.append(stage(blocks))
        channels = width
    stem = chain(convolution(3, 24, 1), nn.BatchNorm2d(24), activated=True)
    return CifarNet(stem, stages, channels, num_classes)


def shufflenet_v2(num_classes: int = 100) -> nn.Module:
    """ShuffleNetV2 of width 1 (1.36 million parameters)."""
    channels, stages = 24, []
    for width, depth in ((116, 4), (232, 8), (464, 4)):
        blocks = [_down(channels, width), *(_split(width) for _ in range(depth - 1))]
        stages.append(stage(blocks, then=ChannelShuffle(2)))
        channels = width
    stem = chain(convolution(3, 24, 1), nn.BatchNorm2d(24), activated=True)
    last = chain(convolution(channels, 1024, 1), nn.BatchNorm2d(1024), activated=True)
    return CifarNet(stem, stages, 1024, num_classes, last)


class _Side(nn.Module):
    """What two branches return, side by side."""

    def __init__(self, body: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.body(x), self.shortcut(x)], dim=1)


class _Half(nn.Module):
    """One half of the channels as it is, beside what a branch makes of the other."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        kept, changed = x.chunk(2, dim=1)
        return torch.cat([kept, self.body(changed)], dim=1)


def _linear_stage(groups: Sequence[Sequence[nn.Module]]) -> nn.Module:
    blocks = [block for group in groups for block in group]
    return nn.Sequential(OrderedDict(pre_activation=nn.Sequential(*blocks)))


def _inverted(channels: int, width: int, stride: int, expansion: int) -> nn.Module:
    wide = channels * expansion
    body = chain(
        convolution(channels, wide, 1),
        nn.BatchNorm2d(wide),
        convolution(wide, wide, stride=stride, groups=wide),
        nn.BatchNorm2d(wide),
        convolution(wide, width, 1),
        nn.BatchNorm2d(width),
    )
    return Residual(body) if stride == 1 and channels == width else body


def _grouped(channels: int, width: int, stride: int) -> nn.Module:
    """Grouped convolutions with a shuffle between; at stride 2 the pooled input stands beside the result."""
    narrow, groups = width // 4, 1 if channels == 24 else 3
    enter = chain(convolution(channels, narrow, 1, groups=groups), nn.BatchNorm2d(narrow), activated=True)
    leave = chain(
        convolution(narrow, narrow, stride=stride, groups=narrow),
        nn.BatchNorm2d(narrow),
        convolution(narrow, width, 1, groups=3),
        nn.BatchNorm2d(width),
    )
    body = nn.Sequential(enter, ChannelShuffle(groups), leave)
    return Residual(body) if stride == 1 else _Side(body, nn.AvgPool2d(3, stride=2, padding=1))


def _split(width: int) -> nn.Module:
    half = width // 2
    return _Half(_separable(half, half, stride=1))


def _down(channels: int, width: int) -> nn.Module:
    half = width // 2
    shortcut = nn.Sequential(
        convolution(channels, channels, stride=2, groups=channels),
        nn.BatchNorm2d(channels),
        convolution(channels, half, 1),
        nn.BatchNorm2d(half),
    )
    return _Side(shortcut, _separable(channels, half, stride=2))


def _separable(channels: int, width: int, stride: int) -> nn.Module:
    return nn.Sequential(
        chain(convolution(channels, width, 1), nn.BatchNorm2d(width), activated=True),
        convolution(width, width, stride=stride, groups=width),
        nn.BatchNorm2d(width),
        convolution(width, width, 1),
        nn.BatchNorm2d(width),
    )
