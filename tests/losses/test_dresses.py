"""The same network in another dress gives every loss the same value, or the loss is refused by the name of the layer.

A dress changes the order of a layer's axes and nothing else: whatever comes next undoes it. The plain network returns
maps (B, C, H, W).
"""

import copy
import inspect
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from lightning_kd import DistillationModule
from lightning_kd.losses import DistillationLoss
from tests import support

SIZE, ROWS = 8, 4
LAYERS = ["stage1", "stage2"]
READ = {name: cls for name, cls in support.exported_losses().items() if cls.reads != "logits" and cls.pairs_layers}
LOSSES = {name: cls for name, cls in READ.items() if name != "EmbeddingLoss"}
"""The losses of maps; ``EmbeddingLoss`` refuses them in every dress."""


class Stage(nn.Module):
    """A convolution, an activation, and a 1x1 convolution, so that a linear layer can stand for the last."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, width, 3, stride, padding=1)
        self.mix = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        mixed: Tensor = self.mix(self.conv(x).relu())
        return mixed


class Net(nn.Module):
    """Two stages of maps, and a head that pools the positions."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stage1: nn.Module = Stage(3, width, 1)
        self.stage2: nn.Module = Stage(width, width + 1, 2)
        self.head = nn.Linear(width + 1, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.stage2(self.stage1(x)).mean((2, 3)))
        return logits


@dataclass(frozen=True)
class Dress:
    """How a map is put into another order, and back."""

    put_on: Callable[[Tensor], Tensor]
    take_off: Callable[[Tensor, int], Tensor]
    """Given the dressed value and the height of the map."""
    refused: frozenset[str] = frozenset()
    """Losses that cannot read it, and say so."""


class Dressed(nn.Module):
    """A stage that returns its map in a dress, and what comes next takes the dress off."""

    def __init__(self, stage: nn.Module, dress: Dress) -> None:
        super().__init__()
        self.stage = stage
        self.dress = dress

    def forward(self, x: Tensor) -> Tensor:
        return self.dress.put_on(self.stage(x))


class DressedNet(nn.Module):
    def __init__(self, net: Net, dress: Dress) -> None:
        super().__init__()
        self.stage1, self.stage2 = Dressed(net.stage1, dress), Dressed(net.stage2, dress)
        self.head, self.dress = net.head, dress

    def forward(self, x: Tensor) -> Tensor:
        first = self.dress.take_off(self.stage1(x), SIZE)
        logits: Tensor = self.head(self.dress.take_off(self.stage2(first), SIZE // 2).mean((2, 3)))
        return logits


class LinearStage(nn.Module):
    """A stage whose 1x1 convolution is a linear layer on the last axis, as in channels-last networks."""

    def __init__(self, stage: Stage) -> None:
        super().__init__()
        self.conv = stage.conv
        self.mix = nn.Linear(stage.mix.in_channels, stage.mix.out_channels, dtype=torch.float64)
        self.mix.weight.data = stage.mix.weight.data.flatten(1)
        self.mix.bias.data = stage.mix.bias.data

    def forward(self, x: Tensor) -> Tensor:
        mixed: Tensor = self.mix(self.conv(x).relu().permute(0, 2, 3, 1))
        return mixed


class LinearNet(Net):
    def __init__(self, net: Net) -> None:
        nn.Module.__init__(self)
        assert isinstance(net.stage1, Stage)
        assert isinstance(net.stage2, Stage)
        self.stage1, self.stage2, self.head = LinearStage(net.stage1), LinearStage(net.stage2), net.head

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.stage2(self.stage1(x).permute(0, 3, 1, 2)).mean((1, 2)))
        return logits


def windows(x: Tensor) -> Tensor:
    """Cut a map into four windows, one after another along the batch axis."""
    rows, channels, height, width = x.shape
    cut = x.reshape(rows, channels, 2, height // 2, 2, width // 2).permute(0, 2, 4, 1, 3, 5)
    return cut.reshape(4 * rows, channels, height // 2, width // 2)


def whole(x: Tensor, height: int) -> Tensor:
    channels = x.shape[1]
    parts = x.reshape(-1, 2, 2, channels, height // 2, height // 2).permute(0, 3, 1, 4, 2, 5)
    return parts.reshape(-1, channels, height, height)


PLANE = frozenset({"FTLoss", "ReviewKDLoss", "MGDLoss"})
EMBEDS = frozenset({"InfoNCELoss", "TripletLoss", "CRDLoss"})
UNMASKED = frozenset({"FSPLoss", "FTLoss", "ReviewKDLoss", "OFDLoss", "ABLoss", "ICKDLoss", "CWDLoss", "MGDLoss"})
POSITIONS = {name for name, loss in LOSSES.items() if loss.compares_positions}

DRESSES = {
    "NHWC": Dress(lambda x: x.permute(0, 2, 3, 1), lambda x, _: x.permute(0, 3, 1, 2)),
    "NHWC in memory": Dress(lambda x: x.permute(0, 2, 3, 1).contiguous(), lambda x, _: x.permute(0, 3, 1, 2)),
    "channels_last": Dress(lambda x: x.contiguous(memory_format=torch.channels_last), lambda x, _: x),
    "tokens": Dress(lambda x: x.flatten(2).transpose(1, 2), lambda x, h: x.transpose(1, 2).unflatten(2, (h, h))),
    "sequence first": Dress(
        lambda x: x.flatten(2).permute(2, 0, 1), lambda x, h: x.permute(1, 2, 0).unflatten(2, (h, h))
    ),
    "a volume": Dress(lambda x: x.unsqueeze(2), lambda x, _: x.squeeze(2), PLANE),
}


def build(name: str, **options: object) -> DistillationLoss:
    """Make a loss of its class with the layers that its kind reads."""
    cls = READ[name]
    one = cls.reads in ("map", "embedding")
    if "stage_length" in inspect.signature(cls).parameters:
        options["stage_length"] = 0
    layers = LAYERS[1] if one else LAYERS
    return cls(layers, layers, **options)


def value(loss: DistillationLoss, student: nn.Module, teacher: nn.Module, batch: object = None) -> float:
    """Return the unweighted value of a loss in a training step."""
    torch.manual_seed(3)
    x = torch.randn(ROWS, 3, SIZE, SIZE, dtype=torch.float64)
    if batch is None:
        batch = (x, torch.tensor([0, 1, 2, 0]), torch.arange(ROWS))
    student, teacher = copy.deepcopy((student, teacher))
    module = DistillationModule(student, teacher, [loss]).double()
    if loss.needs_index:
        loss.set_dataset(2 * ROWS, torch.arange(2 * ROWS) % 3)
    torch.manual_seed(5)
    module.prepare(batch)
    module.double().train()
    torch.manual_seed(7)
    module.training_step(batch, 0)
    (part,) = [number for name, number in module.run.log.flush().items() if name != "loss"]
    return part


def nets() -> tuple[Net, Net]:
    return support.seeded(lambda: Net(4), 0).double(), support.seeded(lambda: Net(6), 1).double()


@pytest.mark.parametrize("who", ["both", "student", "teacher"])
@pytest.mark.parametrize("dress", DRESSES)
@pytest.mark.parametrize("name", LOSSES)
def test_another_order_of_the_axes_changes_nothing(name: str, dress: str, who: str) -> None:
    student, teacher = nets()
    plain = value(build(name), student, teacher)
    dressed = DRESSES[dress]
    sides = (
        DressedNet(student, dressed) if who in ("both", "student") else student,
        DressedNet(teacher, dressed) if who in ("both", "teacher") else teacher,
    )
    mixed = dress == "a volume" and who != "both" and name in POSITIONS
    if name in dressed.refused or mixed:
        with pytest.raises(ValueError, match="layer 'stage"):
            value(build(name), *sides)
    else:
        assert value(build(name), *sides) == pytest.approx(plain, rel=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_channels_last_by_a_linear_layer_changes_nothing(name: str) -> None:
    student, teacher = nets()
    plain = value(build(name), student, teacher)
    assert value(build(name), LinearNet(student), LinearNet(teacher)) == pytest.approx(plain, rel=1e-6)


WINDOWS = Dress(windows, whole)


@pytest.mark.parametrize("name", LOSSES)
def test_windows_folded_into_the_batch_are_unfolded_or_refused(name: str) -> None:
    student, teacher = nets()
    sides = DressedNet(student, WINDOWS), DressedNet(teacher, WINDOWS)
    if name in PLANE:
        with pytest.raises(ValueError, match="layer 'stage"):
            value(build(name), *sides)
    elif name in EMBEDS:  # whose weights stand in the order of the positions
        value(build(name), *sides)
    else:
        assert value(build(name), *sides) == pytest.approx(value(build(name), student, teacher), rel=1e-6)
    if name in POSITIONS:
        with pytest.raises(ValueError, match="layer 'stage"):
            value(build(name), sides[0], teacher)


def mixed_windows(x: Tensor) -> Tensor:
    """Cut a map into windows of which all samples' first come first."""
    return windows(x).unflatten(0, (-1, 4)).transpose(0, 1).flatten(0, 1)


@pytest.mark.parametrize("name", LOSSES)
def test_windows_in_another_order_are_refused(name: str) -> None:
    dress = Dress(mixed_windows, lambda x, h: whole(x.unflatten(0, (4, -1)).transpose(0, 1).flatten(0, 1), h))
    student, teacher = nets()
    with pytest.raises(ValueError, match=r"layer 'stage[12]' .*several rows"):
        value(build(name), DressedNet(student, dress), teacher)


class LineNet(nn.Module):
    """Two convolutions over a sequence, and the same as convolutions over a map of one column."""

    def __init__(self, width: int, line: bool) -> None:
        super().__init__()
        self.line = line
        sizes = (3, width), (width, width + 1)
        maps = [nn.Conv2d(i, o, (3, 1), (s, 1), (1, 0)) for (i, o), s in zip(sizes, (1, 2), strict=True)]
        lines = [nn.Conv1d(i, o, 3, s, 1) for (i, o), s in zip(sizes, (1, 2), strict=True)]
        for mine, other in zip(lines, maps, strict=True):
            mine.weight.data, mine.bias.data = other.weight.data.squeeze(3), other.bias.data
        self.stage1, self.stage2 = lines if line else maps
        self.head = nn.Linear(width + 1, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(2) if self.line else x.flatten(2).unsqueeze(3)
        logits: Tensor = self.head(self.stage2(self.stage1(x).relu()).flatten(2).mean(2))
        return logits


@pytest.mark.parametrize("length", [8, 4], ids=["more positions than channels", "as many positions as channels"])
@pytest.mark.parametrize("name", LOSSES)
def test_a_convolution_over_a_sequence_is_one_over_a_column(name: str, length: int) -> None:
    columns, lines = (
        [support.seeded(lambda w=w, on=on: LineNet(w, on), w).double() for w in (4, 6)] for on in (False, True)
    )
    x = torch.randn(ROWS, 3, length, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    batch = (x, torch.tensor([0, 1, 2, 0]), torch.arange(ROWS))
    assert value(build(name), *lines, batch) == pytest.approx(value(build(name), *columns, batch), rel=1e-6)


class TextNet(nn.Module):
    """Embeds tokens, and mixes each with the mean of the valid ones."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(30, width)
        self.stage1, self.stage2 = nn.Linear(width, width), nn.Linear(width, width)
        self.head = nn.Linear(width, 3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        valid = attention_mask.unsqueeze(2)
        x = self.stage1(self.embed(input_ids))
        x = self.stage2(x + (x * valid).sum(1, keepdim=True) / valid.sum(1, keepdim=True))
        logits: Tensor = self.head((x * valid).sum(1) / valid.sum(1))
        return logits


def sentences(padding: int) -> dict[str, Tensor]:
    ids = torch.arange(ROWS * 6).reshape(ROWS, 6) % 29
    mask = torch.arange(6) < torch.tensor([6, 3, 5, 1]).unsqueeze(1)
    ids, mask = (nn.functional.pad(one, (0, padding)) for one in (ids, mask.long()))
    return {"input_ids": ids, "attention_mask": mask, "index": torch.arange(ROWS)}


@pytest.mark.parametrize("name", READ)
def test_padding_changes_nothing(name: str) -> None:
    student, teacher = (support.seeded(lambda w=w: TextNet(w), w).double() for w in (4, 6))
    if name in UNMASKED:
        with pytest.raises(ValueError, match=r"layer|cannot leave out padded tokens"):
            value(build(name), student, teacher, sentences(0))
    else:
        short, long = (value(build(name), student, teacher, sentences(more)) for more in (0, 10))
        assert short != 0
        assert long == pytest.approx(short, rel=1e-6)
