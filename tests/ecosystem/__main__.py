"""Which strategy works on which pair of networks: ``python -m tests.ecosystem --write`` brings the README up to date.

Every strategy is made by ``create()`` and trains one step on each pair, with the layers that it chooses. A cell is
right if the loss is finite, its gradient reaches the student, and another order of the samples gives the same value.
Other arguments are texts that the name of a row must have.
"""

import argparse
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
import torchvision
from torch import nn
from torch.utils.data import Dataset, TensorDataset

from lightning_kd import DistillationModule
from lightning_kd.data import Indexed
from lightning_kd.losses.strategies import DistillationStrategyType as Strategy
from tests import support
from tests.ecosystem import zoo
from tests.ecosystem.test_strategies import of_timm, of_torchvision, still, swin
from tests.ecosystem.test_tasks import Sequence, Series

README = Path(__file__).parent / "README.md"
BEGIN, END = "<!-- table -->\n", "<!-- end of the table -->\n"
ROWS, SAMPLES = {}, 6
LABELS = [i % zoo.CLASSES for i in range(SAMPLES)]
DRAWS = {Strategy.CONTRASTIVE_BASED}
"""Compares each sample with others that are drawn by place."""
OPTIONS = {
    Strategy.CONTRASTIVE_BASED: {"negatives": 3, "dim": 8},
    Strategy.FLOW_BASED: {"stage_length": 0},
    Strategy.FACTOR_TRANSFER: {"stage_length": 0},
}
"""Small banks, and no first stages, so that one step shows the loss."""


class Out(nn.Module):
    """The main output of a segmentation network."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.net(x)["out"]
        return scores


def row(name: str, data: Callable[[], Dataset]) -> Callable[[Callable], Callable]:
    """Add a row: a function that makes student and teacher."""

    def add(make: Callable) -> Callable:
        ROWS[name] = make, data
        return make

    return add


def pictures(side: int) -> Callable[[], Dataset]:
    return lambda: TensorDataset(torch.randn(SAMPLES, 3, side, side), torch.tensor(LABELS))


def numbers(*shape: int) -> Callable[[], Dataset]:
    return lambda: TensorDataset(torch.randn(SAMPLES, *shape), torch.tensor(LABELS))


def masks() -> Dataset:
    return TensorDataset(torch.randn(SAMPLES, 3, 64, 64), torch.randint(0, zoo.CLASSES, (SAMPLES, 64, 64)))


def sentences() -> Dataset:
    """Sentences of which half the places are padding."""
    ids, mask = torch.randint(1, 40, (SAMPLES, 12)), torch.ones(SAMPLES, 12, dtype=torch.long)
    mask[:, 6:] = 0
    return [{"input_ids": i, "attention_mask": m, "labels": y} for i, m, y in zip(ids, mask, LABELS, strict=True)]


@row("ResNet-18 <- ResNet-34 (torchvision)", pictures(96))
def _() -> tuple[nn.Module, nn.Module]:
    return of_torchvision("resnet18"), of_torchvision("resnet34")


@row("MobileNetV3 (torchvision) <- ResNet-18 (timm)", pictures(64))
def _() -> tuple[nn.Module, nn.Module]:
    return of_torchvision("mobilenet_v3_small"), of_timm("resnet18")


@row("EfficientNet-B0 (timm) <- ConvNeXt (torchvision)", pictures(64))
def _() -> tuple[nn.Module, nn.Module]:
    return of_timm("efficientnet_b0"), of_torchvision("convnext_tiny")


@row("ResNet-18 <- ViT (timm)", pictures(64))
def _() -> tuple[nn.Module, nn.Module]:
    return of_timm("resnet18"), of_timm("vit_tiny_patch16_224", img_size=64, depth=4)


@row("DeiT <- ViT (timm)", pictures(64))
def _() -> tuple[nn.Module, nn.Module]:
    return tuple(of_timm(f"{name}_tiny_patch16_224", img_size=64, depth=4) for name in ("deit", "vit"))


@row("Swin <- Swin, channels last (timm)", pictures(56))
def _() -> tuple[nn.Module, nn.Module]:
    return swin(16), swin(32)


@row("DistilBERT <- BERT, half of it padding", sentences)
def _() -> tuple[nn.Module, nn.Module]:
    dry = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    student = zoo.of_transformers("distilbert", dropout=0.0, attention_dropout=0.0, seq_classif_dropout=0.0)[0]
    return student, zoo.of_transformers("bert", **dry)[0]


@row("LR-ASPP <- LR-ASPP, segmentation (torchvision)", masks)
def _() -> tuple[nn.Module, nn.Module]:
    make = torchvision.models.segmentation.lraspp_mobilenet_v3_large
    return tuple(Out(still(make(weights=None, weights_backbone=None, num_classes=zoo.CLASSES))) for _ in range(2))


@row("R3D-18 <- R3D-18, video (torchvision)", numbers(3, 4, 32, 32))
def _() -> tuple[nn.Module, nn.Module]:
    return tuple(torchvision.models.video.r3d_18(weights=None, num_classes=zoo.CLASSES) for _ in range(2))


@row("Conv1d, a series (B, C, L)", numbers(2, 16))
def _() -> tuple[nn.Module, nn.Module]:
    return Series(8), Series(12)


@row("LSTM, time first (L, B, C)", numbers(6, 4))
def _() -> tuple[nn.Module, nn.Module]:
    return Sequence(8), Sequence(12)


def value(strategy: Strategy, name: str, order: list[int]) -> float:
    """Train one step and return the loss.

    Raises:
        AssertionError: If the gradient does not reach the student.
    """
    make, data = ROWS[name]
    torch.manual_seed(0)
    student, teacher = make()
    for layer in teacher.modules():  # statistics of a batch, as a trained network has them
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.momentum = 1.0
    rows = data()
    whole = [rows[i] for i in range(SAMPLES)]
    with torch.no_grad():
        batch = next(iter(torch.utils.data.DataLoader(whole, SAMPLES)))
        if isinstance(batch, dict):
            teacher(**{key: one for key, one in batch.items() if key != "labels"})
        else:
            teacher(batch[0])
    loss = strategy.create(**OPTIONS.get(strategy, {}))
    module = DistillationModule(
        student,
        None if strategy is Strategy.SELF_DISTILLATION else teacher,
        [loss],
        optimizer=lambda weights: torch.optim.SGD(weights, lr=0.0),
    )
    train = [whole[i] for i in order]
    if strategy is Strategy.CONTRASTIVE_BASED:
        train = Indexed(train, targets=torch.tensor([LABELS[i] for i in order]))
    trainer = support.trainer(max_epochs=1, limit_val_batches=0)
    trainer.fit(module, *[torch.utils.data.DataLoader(train, SAMPLES)] * 2)
    reached = sum(float(p.grad.abs().sum()) for p in student.parameters() if p.grad is not None)
    assert reached > 0, "no gradient reaches the student"
    return trainer.callback_metrics["train/loss"].item()


def judge(strategy: Strategy, name: str) -> str:
    """Return ``✓``, or why a pair is refused or wrong."""
    try:
        first = value(strategy, name, list(range(SAMPLES)))
        other = value(strategy, name, list(reversed(range(SAMPLES))))
    except ValueError as error:  # at set-up
        return str(error).splitlines()[0]
    except (AssertionError, FloatingPointError) as error:
        return f"WRONG: {error}"
    same = strategy in DRAWS or abs(first - other) <= 1e-3 * abs(first) + 1e-7  # the rounding of a float32 near a match
    return "✓" if same and abs(first) < float("inf") else f"WRONG: {first:g}, in another order {other:g}"


def render(cells: dict[tuple[str, str], str]) -> str:
    """Return the table, and the reasons of what is refused as numbered notes."""
    reasons = list(dict.fromkeys(cell for cell in cells.values() if cell != "✓"))
    names = {strategy: loss_name(strategy) for strategy in Strategy}
    lines = [f"| student <- teacher | {' | '.join(names.values())} |", f"|---|{'---|' * len(names)}"]
    for name in dict.fromkeys(row for row, _ in cells):
        marks = [cells[name, strategy.name] for strategy in names]
        shown = [mark if mark == "✓" else f"({reasons.index(mark) + 1})" for mark in marks]
        lines.append(f"| {name} | {' | '.join(shown)} |")
    notes = [f"| ({i}) | {reason} |" for i, reason in enumerate(reasons, 1)]
    return "\n".join([*lines, "", "| | what set-up says |", "|---|---|", *notes, ""])


def loss_name(strategy: Strategy) -> str:
    return type(strategy.create()).__name__.removesuffix("Loss")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.ecosystem", description=__doc__)
    parser.add_argument("texts", nargs="*")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    names = [name for name in ROWS if all(text in name for text in options.texts)]
    cells = {(name, strategy.name): judge(strategy, name) for name in names for strategy in Strategy}
    table = render(cells)
    print(table, end="")
    if options.write and not options.texts:
        before, _, rest = README.read_text().partition(BEGIN)
        README.write_text(f"{before}{BEGIN}\n{table}\n{END}{rest.partition(END)[2]}")
    return int(any(cell.startswith("WRONG") for cell in cells.values()))


if __name__ == "__main__":
    sys.exit(main())
