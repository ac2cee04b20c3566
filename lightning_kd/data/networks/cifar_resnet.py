"""Residual networks for 32 x 32 images: the thin ones of He et al., their wider relatives, WideResNets, ResNet-50."""

from typing import final

import torch.nn.functional as F
from torch import Tensor, nn

from lightning_kd.data.networks.cifar_net import CifarNet, Residual, chain, classifier, convolution, initialise, stage


def resnet8(num_classes: int = 100) -> nn.Module:
    """ResNet-8 with 16, 32 and 64 channels (0.08 million parameters)."""
    return _resnet(8, 1, num_classes)


def resnet14(num_classes: int = 100) -> nn.Module:
    """ResNet-14 with 16, 32 and 64 channels (0.18 million parameters)."""
    return _resnet(14, 1, num_classes)


def resnet20(num_classes: int = 100) -> nn.Module:
    """ResNet-20 with 16, 32 and 64 channels (0.28 million parameters)."""
    return _resnet(20, 1, num_classes)


def resnet32(num_classes: int = 100) -> nn.Module:
    """ResNet-32 with 16, 32 and 64 channels (0.47 million parameters)."""
    return _resnet(32, 1, num_classes)


def resnet44(num_classes: int = 100) -> nn.Module:
    """ResNet-44 with 16, 32 and 64 channels (0.67 million parameters)."""
    return _resnet(44, 1, num_classes)


def resnet56(num_classes: int = 100) -> nn.Module:
    """ResNet-56 with 16, 32 and 64 channels (0.86 million parameters)."""
    return _resnet(56, 1, num_classes)


def resnet110(num_classes: int = 100) -> nn.Module:
    """ResNet-110 with 16, 32 and 64 channels (1.74 million parameters)."""
    return _resnet(110, 1, num_classes)


def resnet8x4(num_classes: int = 100) -> nn.Module:
    """ResNet-8 with 64, 128 and 256 channels after a stem of 32 (1.23 million parameters)."""
    return _resnet(8, 4, num_classes, stem=32)


def resnet32x4(num_classes: int = 100) -> nn.Module:
    """ResNet-32 with 64, 128 and 256 channels after a stem of 32 (7.43 million parameters)."""
    return _resnet(32, 4, num_classes, stem=32)


def resnet50(num_classes: int = 100) -> nn.Module:
    """ResNet-50 with bottlenecks in four stages, its stem for 32 x 32 images (23.7 million parameters)."""
    channels, stages = 64, []
    for width, depth, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        blocks: list[nn.Module] = []
        for _ in range(depth):
            blocks.append(_bottleneck(channels, width, stride))
            channels, stride = 4 * width, 1
        stages.append(stage(blocks))
    net = CifarNet(chain(convolution(3, 64), nn.BatchNorm2d(64), activated=True), stages, channels, num_classes)
    initialise(net)
    return net


def wrn_16_1(num_classes: int = 100) -> nn.Module:
    """WideResNet-16-1 (0.18 million parameters)."""
    return WideResNet(16, 1, num_classes)


def wrn_16_2(num_classes: int = 100) -> nn.Module:
    """WideResNet-16-2 (0.70 million parameters)."""
    return WideResNet(16, 2, num_classes)


def wrn_40_1(num_classes: int = 100) -> nn.Module:
    """WideResNet-40-1 (0.57 million parameters)."""
    return WideResNet(40, 1, num_classes)


def wrn_40_2(num_classes: int = 100) -> nn.Module:
    """WideResNet-40-2 (2.26 million parameters)."""
    return WideResNet(40, 2, num_classes)


@final
class WideResNet(nn.Module):
    """A residual network whose blocks normalise before they convolve (WRN).

    Layers have the names of :class:`CifarNet`. As in the published recipes, ``stem`` and
    ``stage1`` to ``stage3`` return the plain sums, and ``stage1.pre_activation`` what the norm that follows makes of
    them, just before a ReLU.

    Args:
        depth: Number of layers, 6n + 4.
        widen: How many times wider than a thin ResNet.
        num_classes: Number of logits, >= 1.

    Raises:
        ValueError: If there is no network of that depth, or no class.

    Example:
        >>> sum(p.numel() for p in WideResNet(depth=16, widen=2).parameters())
        703284
    """

    def __init__(self, depth: int, widen: int, num_classes: int = 100) -> None:
        super().__init__()
        if depth < 10 or (depth - 4) % 6:
            raise ValueError(f"WideResNet: expected depth 10, 16, 22, ..., got {depth}.")
        each = (depth - 4) // 6
        self.stem = convolution(3, 16)
        self.stage1 = _WideStage(16, 16 * widen, each, stride=1, activated=False)
        self.stage2 = _WideStage(16 * widen, 32 * widen, each, stride=2, activated=True)
        self.stage3 = _WideStage(32 * widen, 64 * widen, each, stride=2, activated=True)
        self.embedding = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = classifier(64 * widen, num_classes)
        initialise(self, head_bias=False)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits."""
        x = self.stem(images)
        for part in (self.stage1, self.stage2, self.stage3):
            x = F.relu(part.pre_activation(part(x)))
        logits: Tensor = self.head(self.embedding(x))
        return logits


class _WideStage(nn.Module):
    """Blocks, and a norm of their sum. The network calls the norm, so that the stage itself returns the plain sum."""

    def __init__(self, channels: int, width: int, depth: int, *, stride: int, activated: bool) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        if channels != width and not activated:  # where the width changes, both branches read the normalised map
            blocks += [nn.BatchNorm2d(channels), nn.ReLU()]
        blocks.append(_wide_block(channels, width, stride, activated=channels != width))
        blocks += [_wide_block(width, width, 1, activated=False) for _ in range(depth - 1)]
        self.blocks = nn.Sequential(*blocks)
        self.pre_activation = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        summed: Tensor = self.blocks(x)
        return summed


def _wide_block(channels: int, width: int, stride: int, *, activated: bool) -> nn.Module:
    before = [] if activated else [nn.BatchNorm2d(channels), nn.ReLU()]
    convolutions = [convolution(channels, width, stride=stride), nn.BatchNorm2d(width), nn.ReLU()]
    body = nn.Sequential(*before, *convolutions, convolution(width, width))
    return Residual(body, convolution(channels, width, 1, stride=stride) if channels != width else None)


def _resnet(depth: int, widen: int, num_classes: int, stem: int = 16) -> nn.Module:
    channels, stages = stem, []
    for width, stride in ((16 * widen, 1), (32 * widen, 2), (64 * widen, 2)):
        blocks: list[nn.Module] = []
        for _ in range((depth - 2) // 6):
            blocks.append(_basic(channels, width, stride))
            channels, stride = width, 1
        stages.append(stage(blocks))
    net = CifarNet(chain(convolution(3, stem), nn.BatchNorm2d(stem), activated=True), stages, channels, num_classes)
    initialise(net)
    return net


def _basic(channels: int, width: int, stride: int) -> nn.Module:
    layers = (
        convolution(channels, width, stride=stride),
        nn.BatchNorm2d(width),
        convolution(width, width),
        nn.BatchNorm2d(width),
    )
    return Residual(chain(*layers), _shortcut(channels, width, stride))


def _bottleneck(channels: int, width: int, stride: int) -> nn.Module:
    layers = (
        convolution(channels, width, 1),
        nn.BatchNorm2d(width),
        convolution(width, width, stride=stride),
        nn.BatchNorm2d(width),
        convolution(width, 4 * width, 1),
        nn.BatchNorm2d(4 * width),
    )
    return Residual(chain(*layers), _shortcut(channels, 4 * width, stride))


def _shortcut(channels: int, width: int, stride: int) -> nn.Module | None:
    if stride == 1 and channels == width:
        return None
    return chain(convolution(channels, width, 1, stride=stride), nn.BatchNorm2d(width))
