"""Small convolutional networks for 8 x 8 digits, wide ones to teach and narrow ones to learn."""

from collections import OrderedDict
from typing import final

from torch import Tensor, nn


@final
class DigitsConvNet(nn.Module):
    """Classify (B, 1, 8, 8) images by three convolutional stages and one linear layer.

    Every layer can be named as the source of a feature, w being ``width``:

    ============= =============== =============================================
    name          output          what it is
    ============= =============== =============================================
    ``stage1``    (B, w, 8, 8)    after the last ReLU of the stage
    ``stage2``    (B, 2w, 4, 4)
    ``stage3``    (B, 4w, 2, 2)
    ``embedding`` (B, 4w)         mean over the map
    ``head``      (B, classes)    the logits, also what the network returns
    ============= =============== =============================================

    ``stage1.norm``, ``stage2.norm`` and ``stage3.norm`` are the same maps before the ReLU. With two convolutions a
    stage, width 32 has 288 170 parameters; with one, width 8 has 6 274, width 6 has 3 628 and width 4 has 1 702.

    Args:
        width: Channels of the first stage, >= 1; each later stage has twice as many as the one before.
        depth: Convolutions in each stage, >= 1.
        num_classes: Number of logits, >= 1.

    Raises:
        ValueError: If a number is out of its range.

    Example:
        >>> import torch
        >>> student = DigitsConvNet(width=8)
        >>> student(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 10])
        >>> sum(p.numel() for p in student.parameters())
        6274
    """

    def __init__(self, width: int = 8, depth: int = 1, num_classes: int = 10) -> None:
        super().__init__()
        for name, value in (("width", width), ("depth", depth), ("num_classes", num_classes)):
            if value < 1:
                raise ValueError(f"DigitsConvNet: expected {name} >= 1, got {value}.")
        self.stage1 = _stage(1, width, depth, stride=1)
        self.stage2 = _stage(width, 2 * width, depth, stride=2)
        self.stage3 = _stage(2 * width, 4 * width, depth, stride=2)
        self.embedding = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(4 * width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits."""
        logits: Tensor = self.head(self.embedding(self.stage3(self.stage2(self.stage1(images)))))
        return logits


def _stage(channels: int, width: int, depth: int, stride: int) -> nn.Sequential:
    """Convolutions of 3 x 3, the first with the stride; ``norm`` is the last layer before the last ReLU."""
    inner = []
    for _ in range(depth - 1):
        inner += [*_convolution(channels, width, stride).values(), nn.ReLU()]
        channels, stride = width, 1
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    if inner:
        layers["inner"] = nn.Sequential(*inner)
    layers.update(_convolution(channels, width, stride))
    layers["relu"] = nn.ReLU()
    return nn.Sequential(layers)


def _convolution(channels: int, width: int, stride: int) -> dict[str, nn.Module]:
    return {
        "conv": nn.Conv2d(channels, width, kernel_size=3, stride=stride, padding=1, bias=False),
        "norm": nn.BatchNorm2d(width),
    }
