"""What the tests of resuming train: every kind of state that a run has, and the ways to save, validate and end."""

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import ReduceLROnPlateau
from lightning.pytorch.loggers import Logger
from lightning_utilities.core.rank_zero import rank_zero_only
from torch.optim.lr_scheduler import ExponentialLR
from torch.utils.data import DataLoader, default_collate

from lightning_kd import Curriculum, DistillationCallback, DistillationModule
from lightning_kd.data import Indexed
from lightning_kd.losses import ABLoss, CRDLoss, FSPLoss, FTLoss, HintLoss, HybridLoss, KDLoss, MutualLearning
from lightning_kd.schedules import CosineSchedule, LinearSchedule
from lightning_kd.teachers import BornAgain, EMATeacher
from tests import support

EPOCHS, BATCHES, BATCH = 4, 3, 8


@dataclass
class Scenario:
    """What is trained, beside the networks."""

    losses: Callable[[], list]
    callbacks: Callable[[], list] = list
    taught: bool = True
    staged: bool = False
    saver: Callable[..., Callback] = lambda *args, **options: ModelCheckpoint(*args, every_n_train_steps=1, **options)
    schedule: Callable | None = None
    train: Callable | None = None
    options: dict = field(default_factory=dict)


def two():
    return [KDLoss(temperature=2.0, weight=0.9), HintLoss("features", "features", weight=2.0)]


def scheduled():
    return [
        KDLoss(temperature=LinearSchedule(4.0, 1.0, length=7, unit="step"), weight=0.9),
        HintLoss("features", "features", weight=CosineSchedule(2.0, 0.0, length=3)),
    ]


def plain_loader(rank, size, workers=0):
    """As most people have it, with augmentation that draws random numbers."""
    return DataLoader(Augmented(), batch_size=BATCH // size, shuffle=True, num_workers=workers)


class Augmented(Indexed):
    """Rows with noise, drawn when they are read."""

    def __init__(self):
        super().__init__(support.data(BATCH * BATCHES))

    def __getitem__(self, row):
        x, *rest = super().__getitem__(row)
        return (x + 0.1 * torch.randn(x.shape), *rest)


class Rows:
    """Shuffles its rows anew every epoch, and goes on in the middle of one when it is resumed there."""

    def __init__(self, rank, size):
        self.dataset = Indexed(support.data(BATCH * BATCHES))
        self.rank, self.size, self.seed, self.done, self.left = rank, size, 0, BATCHES, False

    def __len__(self):
        return BATCHES

    def __iter__(self):
        torch.empty(()).normal_()  # as torch's own loader does for its workers' seed
        if not self.left:
            self.seed, self.done = random.getrandbits(32), 0
        self.left = False
        return self.batches()

    def batches(self):
        mine = torch.arange(len(self.dataset))[self.rank :: self.size]
        order = torch.randperm(len(mine), generator=torch.Generator().manual_seed(self.seed))
        for rows in mine[order].split(BATCH // self.size)[self.done :]:
            self.done += 1
            yield default_collate([self.dataset[int(row)] for row in rows])

    def state_dict(self):
        return {"seed": self.seed, "done": self.done}

    def load_state_dict(self, state):
        self.seed, self.done, self.left = state["seed"], state["done"], state["done"] < BATCHES


SCENARIOS = {
    "kd and hint": Scenario(two),
    "saved at epoch ends": Scenario(two, saver=ModelCheckpoint),
    "saved after validation": Scenario(two, saver=partial(ModelCheckpoint, save_on_train_epoch_end=False)),
    "validated within epochs": Scenario(two, options={"val_check_interval": 1}),
    "never validated": Scenario(two, options={"limit_val_batches": 0}),
    "ended by steps": Scenario(two, options={"max_epochs": -1, "max_steps": EPOCHS * BATCHES - 1}),
    "ended by steps, saved at epoch ends": Scenario(
        two, saver=ModelCheckpoint, options={"max_epochs": -1, "max_steps": EPOCHS * BATCHES - 1}
    ),
    "accumulated": Scenario(two, options={"accumulate_grad_batches": 2, "max_epochs": 5}),
    "schedules": Scenario(scheduled),
    "plateau": Scenario(two, schedule=partial(ReduceLROnPlateau, monitor="val/agreement", factor=0.5, patience=0)),
    "banks": Scenario(lambda: [CRDLoss("features", "features", dim=4, negatives=6)]),
    "factor": Scenario(lambda: [FTLoss(stage_length=4, stage_unit="step", stage_lr=0.01, weight=5.0)], staged=True),
    "flow": Scenario(lambda: [FSPLoss(stage_length=1)], staged=True),
    "boundary": Scenario(lambda: [ABLoss(stage_length=5, stage_unit="step"), KDLoss()], staged=True),
    "balanced": Scenario(lambda: [HybridLoss(two(), balance="magnitude", momentum=0.9)]),
    "uncertain": Scenario(lambda: [HybridLoss(two(), balance="uncertainty")]),
    "mutual": Scenario(lambda: [MutualLearning([support.seeded(partial(support.ConvNet, 4), 9)])]),
    "born again": Scenario(scheduled, lambda: [BornAgain(generations=2, ensemble=True)], taught=False),
    "mean teacher": Scenario(two, lambda: [EMATeacher(decay=0.9)], taught=False),
    "curriculum": Scenario(two, lambda: [Curriculum(start=0.5, length=2)], train=plain_loader),
    "plain loader": Scenario(two, train=plain_loader),
    "plain loader with workers": Scenario(two, train=partial(plain_loader, workers=1)),
}


class Lines(Logger):
    """Writes every value to the disk as soon as it is logged."""

    name, version = "lines", 0

    def __init__(self, path):
        super().__init__()
        self.path = path

    @rank_zero_only
    def log_hyperparams(self, *args, **kwargs):
        pass

    @rank_zero_only
    def log_metrics(self, metrics, step=None):
        with open(self.path, "a") as file:
            file.write(json.dumps([step, metrics]) + "\n")


class Scheduled(support.UserModule):
    """A user's module with a schedule."""

    make_schedule = None

    def configure_optimizers(self):
        optimizer = super().configure_optimizers()
        schedule = self.make_schedule(optimizer)
        monitor = {"monitor": schedule.monitor} if hasattr(schedule, "monitor") else {}
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, **monitor}}


def build(scenario, door, rank=0):
    """Return the module and the callbacks; each process draws another student, of which the first one's counts."""
    kind = partial(support.StagedNet, norm=True) if scenario.staged else partial(support.ConvNet, dropout=0.5)
    net, guide = support.seeded(partial(kind, 3), 3 + rank), support.seeded(partial(kind, 8), 7)
    torch.manual_seed(5)
    losses, callbacks = scenario.losses(), scenario.callbacks()
    teacher = guide if scenario.taught else None
    schedule = scenario.schedule or partial(ExponentialLR, gamma=0.9)
    if door == "module":
        optimizer = partial(torch.optim.SGD, lr=0.1, momentum=0.9)
        return support.module(
            net, teacher=teacher, losses=losses, optimizer=optimizer, lr_scheduler=schedule
        ), callbacks
    if door == "several":
        nets = {"one": net, "other": support.seeded(partial(kind, 4), 4 + rank)}
        options = {"task_loss": torch.nn.CrossEntropyLoss(), "lr_scheduler": schedule}
        options["optimizer"] = partial(torch.optim.SGD, lr=0.1, momentum=0.9)
        return DistillationModule(students=nets, teacher=teacher, losses=losses, **options), callbacks
    made = Scheduled(net)
    made.make_schedule = schedule
    return made, [*callbacks, DistillationCallback(teacher, losses)]


def fit(scenario, door, lines, seed=11, callbacks=(), rank=0, size=1, **options):
    """Fit a scenario through a door; returns the Trainer and the module."""
    made, own = build(scenario, door, rank)
    random.seed(seed)
    train = (scenario.train or Rows)(rank, size)
    defaults = {"max_epochs": EPOCHS, "num_sanity_val_steps": 2, "enable_checkpointing": True, "logger": Lines(lines)}
    options = defaults | scenario.options | options
    return support.fit(made, seed=seed + rank, train=train, callbacks=[*own, *callbacks], **options), made


def outcome(trainer, path):
    """Everything that a run has come to: its weights, and what a checkpoint holds beside them."""
    trainer.save_checkpoint(path)
    checkpoint = torch.load(path, weights_only=True)
    savers = [key for key in checkpoint["callbacks"] if key.startswith("ModelCheckpoint")]
    for key in savers:  # names of files
        del checkpoint["callbacks"][key]
    del checkpoint["loops"]
    return checkpoint


def curve(path):
    """What the doors logged, by step and name; what was written last counts.

    A value that a user's own step has logged is written by Lightning after the checkpoint of that step: a process
    killed between the two does not write it.
    """
    found = {}
    for line in path.read_text().splitlines():
        step, values = json.loads(line)
        found |= {(step, name): value for name, value in values.items() if name != "user_loss"}
    return found


def differences(one, other, where=""):
    """Name what differs between two nests of dictionaries, lists, tensors and numbers."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return [] if torch.equal(one, other) else [where]
    if isinstance(one, dict) and isinstance(other, dict):
        names = [*one, *(name for name in other if name not in one)]
        return [d for n in names for d in differences(one.get(n, "none"), other.get(n, "none"), f"{where}/{n}")]
    if isinstance(one, list | tuple) and len(one) == len(other):
        return [d for i, pair in enumerate(zip(one, other, strict=True)) for d in differences(*pair, f"{where}/{i}")]
    return [] if one == other else [f"{where}: {one} {other}"]
