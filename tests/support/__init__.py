"""Small networks, data and Trainers that the tests share."""

import csv
import inspect
import os
import signal
import socket
from functools import partial

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_kd import DistillationCallback, DistillationModule, losses
from lightning_kd.losses import DistillationLoss, HintLoss, KDLoss
from tests.support import processes

CLASSES = 4


class ConvNet(nn.Module):
    """Two layers with BatchNorm and, on demand, dropout: everything that a careless teacher disturbs."""

    def __init__(self, width, classes=CLASSES, dropout=0.0):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(width * 16, classes)

    def forward(self, x):
        return self.head(self.dropout(self.features(x)).flatten(1))


class StagedNet(nn.Module):
    """Maps of two resolutions, an embedding and logits: something to read for every loss."""

    def __init__(self, width, norm=True):
        super().__init__()
        self.stage1 = self._stage(1, width, 1, norm)
        self.stage2 = self._stage(width, 2 * width, 2, norm)
        self.embedding = nn.Sequential(nn.Flatten(), nn.Linear(8 * width, 6))
        self.head = nn.Linear(6, CLASSES)

    def forward(self, x):
        return self.head(self.embedding(self.stage2(self.stage1(x))))

    @staticmethod
    def _stage(channels, width, stride, norm):
        layers = [
            nn.Conv2d(channels, width, 3, stride, padding=1),
            *([nn.BatchNorm2d(width)] if norm else []),
            nn.ReLU(),
        ]
        return Block(*layers)


class Block(nn.Sequential):
    """A sequence that compiles as a block of its own, which torch's own does not."""

    def forward(self, x):
        return super().forward(x)


OF_TRANSFORMERS = ("AttentionMatrixLoss", "QKVRelationLoss")
"""Losses that read attention, which no network here has; ``tests/losses/tokens`` fits them."""


def exported_losses():
    """Every loss that the package exports, by name, but those of attention."""
    return {
        name: thing
        for name, thing in vars(losses).items()
        if inspect.isclass(thing) and issubclass(thing, DistillationLoss) and not inspect.isabstract(thing)
        if name not in OF_TRANSFORMERS
    }


def default_loss(name, **options):
    """A loss with its defaults; what has no default is filled in."""
    cls = exported_losses()[name]
    args = [[seeded(partial(StagedNet, 3, norm=False), 9)]] if cls is losses.MutualLearning else []
    return cls(*args, **options)


def options_of(name):
    """The names of a loss's options."""
    return list(inspect.signature(exported_losses()[name]).parameters)


class UserModule(LightningModule):
    """A LightningModule as people write them, which knows nothing of distillation."""

    def __init__(self, net, form="tensor"):
        super().__init__()
        self.net = net
        self.criterion = nn.CrossEntropyLoss()
        self.form = form

    def training_step(self, batch, batch_idx):
        x, y = batch[:2]
        loss = self.criterion(self.net(x), y)
        self.log("user_loss", loss)
        if self.form == "sometimes none" and batch_idx == 1:
            return None
        return {"loss": loss, "extra": 1} if self.form == "dict" else loss

    def validation_step(self, batch, batch_idx):
        x, y = batch[:2]
        self.log("user_val", self.criterion(self.net(x), y))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


def data(count=24, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 1, 4, 4, generator=generator)
    return TensorDataset(x, torch.randint(0, CLASSES, (count,), generator=generator))


def loader(shuffle=False, batch_size=8, count=24):
    return DataLoader(data(count), batch_size=batch_size, shuffle=shuffle)


class ResumableLoader:
    """The same batches every epoch; goes on in the middle of one when it is resumed there."""

    def __init__(self, **options):
        self.batches, self.start, self.done = list(loader(**options)), 0, 0

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        torch.empty(()).normal_()  # as torch's own loader does for its workers' seed
        start, self.start = self.start, 0
        return self._rest(start)

    def _rest(self, start):
        for i, batch in enumerate(self.batches):
            if i >= start:
                self.done = i + 1
                yield batch

    def state_dict(self):
        return {"done": self.done}

    def load_state_dict(self, state):
        self.start = state["done"] % len(self.batches)


class SaveEveryStep(Callback):
    """Writes ``<steps>.ckpt`` after every step."""

    def __init__(self, folder):
        self.folder = folder

    def on_train_batch_end(self, trainer, *_):
        trainer.save_checkpoint(self.folder / f"{trainer.global_step}.ckpt")


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


class Dying:
    """A file whose process is killed in the middle of the write that passes a number of bytes."""

    def __init__(self, file, left, kill=kill):
        self.file, self.left, self.kill = file, left, kill

    def write(self, data):
        part = bytes(data)[: self.left]
        self.left -= len(part)
        self.file.write(part)
        if not self.left:
            self.file.flush()
            self.kill()
        return len(part)

    def __getattr__(self, name):
        return getattr(self.file, name)


def killed(work):
    """Do something in a process of its own, which must die of SIGKILL."""
    assert processes.forked("what must be killed", [work], limit=60) == [-signal.SIGKILL]


class Batches(list):
    """Batches that are already made; unlike a DataLoader of them it draws no random number."""

    def __init__(self, ready, dataset=None):
        super().__init__(ready)
        self.dataset = dataset


def batches(*ready):
    """A loader of batches that are already made."""
    return DataLoader(list(ready), batch_size=None)


def seeded(make, seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make()


def teacher(classes=CLASSES):
    return seeded(partial(ConvNet, 8, classes), 7)


def student(dropout=0.0):
    return seeded(partial(ConvNet, 3, dropout=dropout), 3)


def default_losses():
    return [KDLoss(temperature=2.0, weight=0.9), HintLoss("features", "features", weight=2.0)]


def module(net=None, **options):
    defaults = {
        "teacher": teacher(),
        "losses": default_losses(),
        "task_loss": nn.CrossEntropyLoss(),
        "optimizer": partial(torch.optim.SGD, lr=0.1, momentum=0.9),
    }
    return DistillationModule(student() if net is None else net, **(defaults | options))


def through(door, net=None, *, guide=None, losses=None):
    """Return a module that distils through a door, and the door's callbacks."""
    net, guide = student() if net is None else net, teacher() if guide is None else guide
    parts = default_losses() if losses is None else losses
    if door == "module":
        return module(net, teacher=guide, losses=parts), []
    return UserModule(net), [DistillationCallback(guide, parts)]


def trainer(**options):
    defaults = {
        "max_epochs": 2,
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "log_every_n_steps": 2,
        "num_sanity_val_steps": 0,
    }
    return Trainer(**(defaults | options))


def fit(lightning_module, seed=11, train=None, val=None, ckpt_path=None, **options):
    """Fit with the same random numbers whatever happened before; returns the Trainer."""
    made = trainer(**options)
    torch.manual_seed(seed)
    made.fit(lightning_module, train or loader(shuffle=True), val or loader(), ckpt_path=ckpt_path)
    return made


def rows(logger):
    """The lines that a CSVLogger has written, with the values that each has."""
    logger.save()
    with open(f"{logger.log_dir}/metrics.csv") as file:
        return [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]


def free_port():
    """A port for a process group to meet at."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return str(one.getsockname()[1])


def assert_same_weights(one, other):
    one, other = one.state_dict(), other.state_dict()
    assert one.keys() == other.keys()
    different = [name for name in one if not torch.equal(one[name], other[name])]
    assert not different, different


def snapshot(net):
    return {name: value.clone() for name, value in net.state_dict().items()}


def assert_unchanged(net, before):
    changed = [name for name, value in net.state_dict().items() if not torch.equal(value, before[name])]
    assert not changed, changed
