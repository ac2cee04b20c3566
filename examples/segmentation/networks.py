"""Teacher and student: torchvision's fully convolutional network (FCN) on a short encoder, without weights."""

import torch
from torch import nn

try:
    from torchvision.models.feature_extraction import create_feature_extractor
    from torchvision.models.segmentation.fcn import FCN, FCNHead
    from torchvision.ops import Conv2dNormActivation
except ImportError as error:
    raise ImportError('This example needs torchvision: pip install "lightning_kd[segmentation]"') from error

from examples.segmentation.shapes import CLASSES


def make_teacher() -> nn.Module:
    """Make the teacher, of width 24: 240 thousand parameters."""
    return network(24)


def make_student(seed: int) -> nn.Module:
    """Make the student, of width 12: 60 thousand parameters; a seed gives the same weights."""
    torch.manual_seed(seed)
    return network(12)


def network(width: int) -> nn.Module:
    """Make an FCN that sees a quarter of the resolution, and 71 pixels around.

    It returns ``{"out": (B, 6, H, W)}``. Its ``classifier`` returns the class scores of a quarter of the height and
    width, its ``backbone.4`` the features that these are made of.

    Args:
        width: Channels of the first layer; the last has four times as many.
    """
    sizes = [(3, width, 2, 1), (width, 2 * width, 2, 1), (2 * width, 4 * width, 1, 1)]
    sizes += [(4 * width, 4 * width, 1, dilation) for dilation in (2, 4)]
    layers = [Conv2dNormActivation(i, o, 3, stride, dilation=dilation) for i, o, stride, dilation in sizes]
    backbone = create_feature_extractor(nn.Sequential(*layers), {"4": "out"})
    net: nn.Module = FCN(backbone, FCNHead(4 * width, len(CLASSES)))
    return net
