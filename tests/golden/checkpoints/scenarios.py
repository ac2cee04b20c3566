"""What was trained when the checkpoints in this folder were written, and how to train it again.

A scenario stays as it is once its file is written; README.md says how to add one. Of lightning_kd only public names
stand here, so that later code can move inside without touching this file.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import (
    Checkpoint,
    EMAWeightAveraging,
    LearningRateMonitor,
    StochasticWeightAveraging,
)
from lightning.pytorch.cli import ReduceLROnPlateau
from lightning.pytorch.loggers import Logger
from torch import Tensor, nn
from torch.optim.lr_scheduler import ExponentialLR, OneCycleLR
from torch.utils.data import DataLoader

from lightning_kd import BornAgain, Curriculum, DistillationCallback, DistillationModule, EMATeacher, losses
from lightning_kd.data import Indexed
from lightning_kd.losses import AdaptiveTemperature, FTLoss, HintLoss, HybridLoss, KDLoss
from lightning_kd.projectors import ConvProjector, ConvRegressor, LinearProjector
from lightning_kd.schedules import (
    ConstantSchedule,
    CosineSchedule,
    LinearSchedule,
    StepSchedule,
    WarmUpSchedule,
)
from tests import support

ROOT = Path(__file__).parents[3]
COMMAND_LINE = "command-line"
DOORS = ("module", "callback")
ROWS, BATCH = 24, 8
BATCHES = ROWS // BATCH
"""Batches an epoch: batch 3 ends the first epoch, batch 4 begins the second."""

SMALL, LARGE = partial(support.StagedNet, 3), partial(support.StagedNet, 5)
SGD = partial(torch.optim.SGD, lr=0.1, momentum=0.9)
DECAY = partial(ExponentialLR, gamma=0.9)


def shuffled(data=Indexed):
    """The training data in a loader as most people have it, with each sample's row."""
    return DataLoader(data(support.data(ROWS)), batch_size=BATCH, shuffle=True)


@dataclass(frozen=True)
class Scenario:
    """What is trained through each door, and at which points checkpoints are written.

    Args:
        losses: Makes the losses.
        points: ``batch-4`` is after the fourth training batch of the run, ``validation-1`` after the first
            validation, ``epoch-1`` at the end of the first epoch, as ModelCheckpoint does by default.
        callbacks: Makes the callbacks beside the door.
        student: Makes the student.
        teacher: Makes the teacher; ``None`` where a callback makes it.
        module: Options of the module door.
        callback: Options of the callback door.
        optimizer: Makes the optimizer from the parameters.
        scheduler: Makes the learning rate scheduler from the optimizer; ``None`` for none.
        interval: When the scheduler steps.
        network_only: Whether the user's module gives the optimizer the network's parameters only.
        train: Makes the training data.
        trainer: Options of the Trainer.
        described: Whether a checkpoint of the module door says which losses it is made with.
        not_saved: What begins the names of weights that checkpoints of a door did not hold: a resumed run ends with
            others. Today that is the average of the losses' own weights, which a weight-averaging callback makes.
        tolerance: How far, relative to 1 and to its size, a number may be off on a processor that computes otherwise.
            Without AVX-512, and without any vector instructions, the largest error seen is 0.2 of this, from rounding
            errors that grow over nine steps; torch 2.10, 2.13 and 2.14 give the same bits on one processor.
        doors: The doors through which it is trained.
        config: Configuration and options of the command line, in place of all else.
    """

    losses: Callable[[], list] = list
    points: tuple[str, ...] = ("batch-4",)
    callbacks: Callable[[], list] = list
    student: Callable[[], nn.Module] = SMALL
    teacher: Callable[[], nn.Module] | None = LARGE
    module: dict[str, Any] = field(default_factory=dict)
    callback: dict[str, Any] = field(default_factory=dict)
    optimizer: Callable = SGD
    scheduler: Callable | None = DECAY
    interval: str = "epoch"
    network_only: bool = False
    train: Callable[[], object] = shuffled
    trainer: dict[str, Any] = field(default_factory=dict)
    described: bool = True
    not_saved: dict[str, str] = field(default_factory=dict)
    tolerance: float = 1e-4
    doors: tuple[str, ...] = DOORS
    config: tuple[str, ...] = ()


def two():
    return [KDLoss(temperature=2.0, weight=0.9), HintLoss("stage2", "stage2", weight=2.0)]


def alone(name, **options):
    """A scenario of one loss."""
    return Scenario(lambda: [getattr(losses, name)(**options)], trainer={"max_epochs": 2})


def scheduled(make):
    """A scenario in which weights, a temperature and the task's weight follow schedules of one class."""
    up, down = partial(make, 0.5, 2.0), partial(make, 4.0, 1.0)
    return Scenario(
        lambda: [KDLoss(temperature=down(), weight=up()), HintLoss(weight=down())],
        ("batch-2", "batch-4"),
        module={"task_weight": up()},
    )


def staged(name, **options):
    """Two scenarios of a loss with a first stage, of 4 steps and of an epoch: within it, at its end, after it."""
    cls = getattr(losses, name)
    short = name.removesuffix("Loss").lower()
    return {
        f"{short}-stage-of-steps": Scenario(
            lambda: [cls(stage_length=4, stage_unit="step", **options), KDLoss()], ("batch-2", "batch-4", "batch-5")
        ),
        f"{short}-stage-of-an-epoch": Scenario(
            lambda: [cls(stage_length=1, **options)], ("batch-2", "batch-3", "epoch-1", "batch-4")
        ),
    }


class Augmented(Indexed):
    """Rows with noise, drawn from three random states when they are read."""

    def __getitem__(self, row):
        x, *rest = super().__getitem__(row)
        scale = 1.0 + 0.1 * random.random() + 0.1 * np.random.rand()
        return (scale * x + 0.1 * torch.randn(x.shape), *rest)


def peers():
    return [support.StagedNet(3, norm=False)]


SCENARIOS = {
    # every loss by itself
    "at": alone("ATLoss"),
    "byot": alone("BYOTLoss"),
    "infonce": alone("InfoNCELoss", dim=8),
    "triplet": alone("TripletLoss", dim=8),
    "cc": alone("CCLoss"),
    "crd": alone("CRDLoss", dim=4, negatives=6),
    "dist": alone("DISTLoss"),
    "dkd": alone("DKDLoss"),
    "hint": alone("HintLoss"),
    "hybrid": alone("HybridLoss"),
    "mutual": Scenario(lambda: [losses.MutualLearning(peers())], described=False),
    "ofd": alone("OFDLoss"),
    "pkt": alone("PKTLoss"),
    "rkd": alone("RKDLoss"),
    "kd": alone("KDLoss"),
    "reviewkd": alone("ReviewKDLoss", mid_channels=4),
    "nst": alone("NSTLoss"),
    "tfkd": alone("TfKDLoss"),
    "ickd": alone("ICKDLoss"),
    "sp": alone("SPLoss"),
    "vid": alone("VIDLoss"),
    **staged("FTLoss", student="stage1", teacher="stage1", stage_lr=0.01, weight=5.0),
    **staged("FSPLoss"),
    **staged("ABLoss"),
    # what a loss has beside its options
    "crd-by-process": alone("CRDLoss", dim=4, negatives=6, gather=False),
    "hybrid-magnitude": Scenario(lambda: [HybridLoss(two(), balance="magnitude", momentum=0.9)]),
    "hybrid-uncertainty": Scenario(lambda: [HybridLoss(two(), balance="uncertainty")]),
    "hybrid-nested": Scenario(
        lambda: [HybridLoss([losses.CRDLoss(dim=4, negatives=6), HybridLoss(two(), weight=0.5)]), KDLoss()]
    ),
    "adaptive-temperature": Scenario(
        lambda: [KDLoss(AdaptiveTemperature(by), weight=0.3) for by in ("confidence", "entropy", "correctness")]
    ),
    "projectors": Scenario(
        lambda: [
            HintLoss("stage1", "stage1", projector=ConvProjector(norm=True, activation=True)),
            HintLoss("stage2", "stage2", projector=ConvRegressor()),
            HintLoss("embedding", "embedding", projector=LinearProjector(bias=False)),
        ]
    ),
    "a-tenth-of-the-run": Scenario(
        lambda: [FTLoss()], ("epoch-1", "batch-2"), trainer={"max_epochs": 10, "limit_train_batches": 1}
    ),
    # what changes over time
    "constant-schedule": scheduled(lambda start, end: ConstantSchedule(end)),
    "linear-schedule": scheduled(lambda start, end: LinearSchedule(start, end, length=7, unit="step", delay=1)),
    "cosine-schedule": scheduled(lambda start, end: CosineSchedule(start, end, length=2)),
    "step-schedule": scheduled(lambda start, end: StepSchedule([start, end, start], [2, 5], unit="step")),
    "warm-up-schedule": scheduled(lambda start, end: WarmUpSchedule(end, length=6, unit="step")),
    # teachers that are made of the student, and what chooses samples or averages weights
    "born-again": Scenario(
        lambda: [
            KDLoss(temperature=LinearSchedule(4.0, 1.0, length=5, unit="step")),
            HintLoss(weight=CosineSchedule(2.0, 0.5, length=2)),
        ],
        ("batch-4", "epoch-2", "batch-6", "batch-8"),
        lambda: [BornAgain(generations=2, ensemble=True)],
        teacher=None,
        trainer={"max_epochs": 4},
    ),
    "born-again-in-stages": Scenario(
        lambda: [FTLoss("stage1", "stage1", stage_length=2, stage_unit="step", stage_lr=0.01), KDLoss()],
        ("batch-7", "batch-8", "batch-10"),
        lambda: [BornAgain(generations=2)],
        teacher=None,
        trainer={"max_epochs": 4},
    ),
    "mean-teacher": Scenario(two, ("batch-4", "epoch-1"), lambda: [EMATeacher(decay=0.9)], teacher=None),
    "mean-teacher-in-16-bits": Scenario(
        two,
        callbacks=lambda: [EMATeacher(decay=0.9)],
        teacher=None,
        trainer={"precision": "bf16-true"},
        tolerance=2e-2,
    ),
    "curriculum": Scenario(two, ("batch-4", "epoch-1"), lambda: [Curriculum(start=0.5, length=2)]),
    "curriculum-in-steps": Scenario(
        two, callbacks=lambda: [Curriculum("hard_to_easy", start=0.4, length=7, unit="step")]
    ),
    "weight-averaging": Scenario(
        two, callbacks=lambda: [EMAWeightAveraging(decay=0.5)], not_saved={"callback": "losses."}
    ),
    "stochastic-weight-averaging": Scenario(
        two,
        ("epoch-1", "epoch-2"),  # Lightning itself does not resume it within an epoch
        lambda: [StochasticWeightAveraging(swa_lrs=0.05, swa_epoch_start=1)],
        trainer={"max_epochs": 4},
        doors=("module",),
    ),
    # the Trainer, the data and the optimizer
    "everywhere": Scenario(
        two, ("batch-1", "batch-3", "validation-1", "epoch-1", "batch-5"), trainer={"num_sanity_val_steps": 2}
    ),
    "accumulated": Scenario(two, ("batch-3", "batch-4"), trainer={"accumulate_grad_batches": 2}),
    "validated-within-epochs": Scenario(two, ("batch-4", "validation-5"), trainer={"val_check_interval": 1}),
    "ended-by-steps": Scenario(two, ("batch-3", "batch-4"), trainer={"max_epochs": -1, "max_steps": 8}),
    "dropout-and-augmentation": Scenario(
        lambda: [KDLoss(temperature=2.0), HintLoss("features", "features")],
        ("batch-4", "epoch-1"),
        student=partial(support.ConvNet, 3, dropout=0.5),
        teacher=partial(support.ConvNet, 8, dropout=0.5),
        train=lambda: shuffled(Augmented),
    ),
    "a-loader-with-state": Scenario(two, ("batch-4", "epoch-1"), train=support.ResumableLoader),
    "scheduler-by-step": Scenario(
        two, ("batch-3", "batch-4"), scheduler=partial(OneCycleLR, max_lr=0.2, total_steps=9), interval="step"
    ),
    "plateau": Scenario(
        two,
        ("epoch-1", "batch-4"),
        scheduler=partial(ReduceLROnPlateau, monitor="val/agreement", factor=0.5, patience=0),
    ),
    # a large eps, because some gradients are rounding errors around 0, which Adam makes as large as any other
    "adamw": Scenario(two, optimizer=partial(torch.optim.AdamW, lr=0.01, eps=0.01), scheduler=None),
    "optimizer-of-the-network-only": Scenario(two, network_only=True, doors=("callback",)),
    "teacher-in-16-bits": Scenario(
        lambda: [KDLoss(), HintLoss()],
        module={"teacher_dtype": "bfloat16"},
        callback={"teacher_dtype": torch.bfloat16},
    ),
    "digits": Scenario(
        points=("batch-5", "epoch-1"),
        doors=(COMMAND_LINE,),
        config=("examples/digits/hybrid.yaml", "--model.student.init_args.width=2"),
    ),
    "digits-generations": Scenario(
        points=("batch-4",),
        doors=(COMMAND_LINE,),
        config=("examples/digits/born_again.yaml", "--model.student.init_args.width=2"),
    ),
}
"""By name; the name is that of the file, too."""


class Curve(Logger):
    """Keeps every value that is logged, exactly.

    Lightning writes what the user's own step has logged after the checkpoint of that step, so it is left out.
    """

    name, version = "curve", 0

    def __init__(self, save_dir: str) -> None:
        super().__init__()
        self.folder, self.lines = save_dir, []

    @property
    def save_dir(self):
        return self.folder

    def log_hyperparams(self, *args, **kwargs):
        pass

    def log_metrics(self, metrics, step=None):
        if "user_loss" not in metrics:
            self.lines.append([step, {name: float(value).hex() for name, value in metrics.items()}])


class Save(Checkpoint):
    """Writes a checkpoint at each of some points, and notes how many lines were logged by then."""

    def __init__(self, folder: str, points: list[str]) -> None:
        self.folder, self.points = Path(folder), points
        self.counts = {"batch": 0, "validation": 0, "epoch": 0}
        self.lines = {}

    def reach(self, trainer, kind):
        if trainer.sanity_checking:
            return
        self.counts[kind] += 1
        point = f"{kind}-{self.counts[kind]}"
        if point in self.points:
            trainer.save_checkpoint(self.folder / f"{point}.ckpt")
            self.lines[point] = len(trainer.logger.lines)

    def on_train_batch_end(self, trainer, *_):
        self.reach(trainer, "batch")

    def on_validation_end(self, trainer, *_):
        self.reach(trainer, "validation")

    def on_train_epoch_end(self, trainer, *_):
        self.reach(trainer, "epoch")


class User(support.UserModule):
    """A LightningModule as people write them."""

    def __init__(self, net, scenario):
        super().__init__(net)
        self.scenario = scenario

    def configure_optimizers(self):
        scenario = self.scenario
        optimizer = scenario.optimizer((self.net if scenario.network_only else self).parameters())
        if scenario.scheduler is None:
            return optimizer
        scheduler = scenario.scheduler(optimizer)
        monitor = {"monitor": scheduler.monitor} if hasattr(scheduler, "monitor") else {}
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": scenario.interval, **monitor},
        }


@dataclass
class Made:
    """The parts of a fit."""

    module: LightningModule
    student: nn.Module
    teacher: nn.Module | None
    losses: nn.Module
    callbacks: list[Callback]

    def end(self) -> dict[str, Tensor]:
        """Everything that a run has learned, by name."""
        found = {"student": self.student.state_dict(), "losses": self.losses.state_dict()}
        for callback in self.callbacks:
            if isinstance(callback, EMATeacher):
                found["teacher"] = callback.teacher.module.state_dict()
            if isinstance(callback, BornAgain) and callback.ensemble:
                found["generations"] = callback.ensemble_of_generations().state_dict()
            if isinstance(callback, Curriculum):
                found["difficulty"] = {"scores": callback.difficulty}
        return {f"{part}.{name}": value.clone() for part, state in found.items() for name, value in state.items()}


def make(name: str, door: str, *, other: bool = False) -> Made:
    """Make the parts of a fit.

    Args:
        name: Which scenario.
        door: ``"module"`` or ``"callback"``.
        other: Whether to draw other first weights than the run that was not interrupted, so that what a checkpoint
            does not bring back shows.
    """
    scenario = SCENARIOS[name]
    net = support.seeded(scenario.student, 103 if other else 3)
    guide = None if scenario.teacher is None else support.seeded(scenario.teacher, 7)
    parts = support.seeded(scenario.losses, 109 if other else 9)
    callbacks = scenario.callbacks()
    if door == "module":
        options = {"task_loss": nn.CrossEntropyLoss(), "optimizer": scenario.optimizer}
        options |= {"lr_scheduler": scenario.scheduler, "lr_interval": scenario.interval}
        module = DistillationModule(net, guide, parts, **options, **scenario.module)
        return Made(module, net, guide, module.losses, callbacks)
    callback = DistillationCallback(guide, parts, **scenario.callback)
    return Made(User(net, scenario), net, guide, callback.losses, [*callbacks, callback])


@dataclass
class Run:
    """What a fit has come to.

    Args:
        end: Everything that it has learned, by name.
        curve: What it logged, line by line: the step, and each value as ``float.hex``.
        lines: How many lines were logged by the time that each checkpoint was written.
    """

    end: dict[str, Tensor]
    curve: list
    lines: dict[str, int]


def fit(name: str, door: str, folder: Path, checkpoint: Path | None = None) -> Run:
    """Fit a scenario, and write its checkpoints into a folder; or go on from a checkpoint, and write none.

    Args:
        name: Which scenario.
        door: Through which door.
        folder: Where to write.
        checkpoint: Where to go on; the parts and the random state are then others at first.
    """
    if door == COMMAND_LINE:
        return _fit_on_the_command_line(name, folder, checkpoint)
    scenario, again = SCENARIOS[name], checkpoint is not None
    made, save, curve = make(name, door, other=again), Save(folder, scenario.points), Curve(folder)
    options = {
        "max_epochs": 3,
        "accelerator": "cpu",
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "log_every_n_steps": 2,
        "num_sanity_val_steps": 0,
        "default_root_dir": folder,
        "logger": curve,
        "enable_checkpointing": not again,
        "callbacks": [*made.callbacks, LearningRateMonitor("step"), *([] if again else [save])],
    }
    trainer = Trainer(**(options | scenario.trainer))
    for seed in (torch.manual_seed, np.random.seed, random.seed):
        seed(99 if again else 11)
    val = DataLoader(support.data(16, seed=1), batch_size=16)
    trainer.fit(made.module, scenario.train(), val, ckpt_path=checkpoint)
    return Run(made.end(), curve.lines, save.lines)


def _fit_on_the_command_line(name, folder, checkpoint):
    from lightning_kd.commands.fit import run  # the only name here that may move

    scenario = SCENARIOS[name]
    config, *options = scenario.config
    here = "tests.golden.checkpoints.scenarios"
    options += [
        "--trainer.max_epochs=3",
        "--trainer.enable_progress_bar=false",
        "--trainer.limit_train_batches=3",
        "--trainer.limit_val_batches=2",
        "--trainer.log_every_n_steps=2",
        f"--trainer.default_root_dir={folder}",
        f"--trainer.logger={here}.Curve",
        f"--trainer.logger.save_dir={folder}",
    ]
    if checkpoint is None:
        save = [f"{here}.Save", f"folder={folder}", f"points={list(scenario.points)}"]
        options += ["--trainer.enable_checkpointing=true", f"--trainer.callbacks+={save[0]}"]
        options += [f"--trainer.callbacks.{option}" for option in save[1:]]
    else:
        options += [f"--ckpt_path={checkpoint}", "--seed_everything=99"]
    cli = run(["fit", f"--config={config}", *options])
    trainer, module = cli.trainer, cli.model
    saved = [callback.lines for callback in trainer.callbacks if isinstance(callback, Save)]
    made = Made(module, module.student, module.teacher, module.losses, trainer.callbacks)
    return Run(made.end(), trainer.logger.lines, saved[0] if saved else {})
