"""What the CIFAR architectures have in common: the names of their layers, and the parts they are built from."""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import cast, final

from torch import Tensor, nn


@final
class CifarNet(nn.Module):
    """A stem, stages of convolutions, the mean over the last map, and a linear layer, for (B, 3, 32, 32) images.

    Layers have the same names in every architecture:

    ========================= ==============================================================
    name                      what it returns
    ========================= ==============================================================
    ``stem``                  the first map
    ``stage1``, ``stage2``... the map after each stage, the last ReLU of the stage included
    ``stage1.pre_activation`` the same map before that ReLU
    ``embedding``             the vector (B, C): the mean over the last map
    ``head``                  the logits (B, classes), also what the network returns
    ========================= ==============================================================

    Stages of MobileNetV2 end without a ReLU: there both names give the same map.

    Args:
        stem: The first layers.
        stages: The stages, as :func:`stage` makes them.
        width: Channels of the embedding.
        num_classes: Number of logits, >= 1.
        last: Layers between the last stage and the mean, if any.

    Raises:
        ValueError: If ``num_classes`` is not positive.

    Example:
        >>> import torch
        >>> net = CifarNet(nn.Conv2d(3, 4, 1), [stage([nn.Conv2d(4, 8, 3, stride=2, padding=1)])], 8, num_classes=5)
        >>> [name for name, _ in net.named_children()], net(torch.zeros(2, 3, 32, 32)).shape
        (['stem', 'stage1', 'embedding', 'head'], torch.Size([2, 5]))
    """

    def __init__(
        self,
        stem: nn.Module,
        stages: Sequence[nn.Module],
        width: int,
        num_classes: int,
        last: Iterable[nn.Module] = (),
    ) -> None:
        super().__init__()
        self.stem = stem
        for number, layers in enumerate(stages, 1):
            self.add_module(f"stage{number}", layers)
        self.embedding = nn.Sequential(*last, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = classifier(width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits."""
        for layer in self.children():
            images = layer(images)
        return images


@final
class Residual(nn.Module):
    """The sum of what two branches return.

    Args:
        body: The branch that computes.
        shortcut: The branch that passes on; by default the input itself.
    """

    def __init__(self, body: nn.Module, shortcut: nn.Module | None = None) -> None:
        super().__init__()
        self.body = body
        self.shortcut = nn.Identity() if shortcut is None else shortcut

    def forward(self, x: Tensor) -> Tensor:
        """Add the two."""
        total: Tensor = self.body(x) + self.shortcut(x)
        return total


@final
class ChannelShuffle(nn.Module):
    """Deal channels out like cards: from groups one after another to one of each group in turn.

    Args:
        groups: Number of groups, a divisor of the channels.

    Example:
        >>> import torch
        >>> ChannelShuffle(2)(torch.arange(6.0).view(1, 6, 1, 1)).flatten()
        tensor([0., 3., 1., 4., 2., 5.])
    """

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        """Reorder the channels."""
        dealt: Tensor = x.unflatten(1, (self.groups, -1)).transpose(1, 2).flatten(1, 2)
        return dealt


def stage(blocks: Iterable[nn.Module], *, first: nn.Module | None = None, then: nn.Module | None = None) -> nn.Module:
    """Chain blocks that each end before their ReLU; the map before the last ReLU is named ``pre_activation``.

    No ReLU works in place: it would overwrite a map that a loss reads.

    Args:
        blocks: The blocks.
        first: A layer before all blocks, such as pooling.
        then: A layer after the ReLU of each block, such as a shuffle.
    """
    after = [nn.ReLU()] if then is None else [nn.ReLU(), then]
    inner = [layer for block in blocks for layer in (block, *after)][: -len(after)]
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    if first is not None:
        layers["pool"] = first
    layers["pre_activation"] = nn.Sequential(*inner)
    layers["relu"] = nn.ReLU()
    if then is not None:
        layers["shuffle"] = then
    return nn.Sequential(layers)


def convolution(
    channels: int, width: int, kernel: int = 3, *, stride: int = 1, groups: int = 1, bias: bool = False
) -> nn.Conv2d:
    """Make a convolution that keeps the size of the map at stride 1."""
    return nn.Conv2d(channels, width, kernel, stride=stride, padding=kernel // 2, groups=groups, bias=bias)


def chain(*layers: nn.Module, activated: bool = False) -> nn.Sequential:
    """Chain pairs of convolution and norm with a ReLU between pairs, and after the last one if ``activated``.

    Layers are named ``conv1``, ``norm1``, ``relu1``, ``conv2`` and so on.
    """
    named: OrderedDict[str, nn.Module] = OrderedDict()
    for number, (conv, norm) in enumerate(zip(layers[::2], layers[1::2], strict=True), 1):
        named[f"conv{number}"], named[f"norm{number}"] = conv, norm
        if activated or 2 * number < len(layers):
            named[f"relu{number}"] = nn.ReLU()
    return nn.Sequential(named)


def classifier(width: int, num_classes: int) -> nn.Linear:
    """Make the last layer, or raise a ``ValueError`` if there are no classes."""
    if num_classes < 1:
        raise ValueError(f"Expected num_classes >= 1, got {num_classes}.")
    return nn.Linear(width, num_classes)


def initialise(net: nn.Module, *, head_std: float | None = None, head_bias: bool = True) -> None:
    """Draw a network's weights as the published recipes do.

    Convolutions are normal with variance 2 / (outputs of a channel's window), their biases 0. Norms and everything
    that is not named here keep PyTorch's defaults.

    Args:
        net: The network.
        head_std: Standard deviation of linear layers' weights; by default PyTorch's own distribution.
        head_bias: Whether the biases of linear layers keep PyTorch's own distribution; else they are 0.
    """
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(layer, nn.Linear) and head_std is not None:
            nn.init.normal_(layer.weight, 0.0, head_std)
        is_head = isinstance(layer, nn.Linear) and not head_bias
        if (isinstance(layer, nn.Conv2d) or is_head) and layer.bias is not None:
            nn.init.zeros_(cast(Tensor, layer.bias))
