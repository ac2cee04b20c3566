"""Fit scenario after scenario through one door in one mode and write the weights; a program.

python -m tests.programs.distributed_fit DOOR one|ddp|fsdp2 FOLDER SCENARIO...
"""

import os
import sys
from functools import partial

import torch
from lightning.pytorch import Callback
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch import nn
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader, DistributedSampler

from lightning_kd import DistillationCallback
from lightning_kd.data import Indexed
from lightning_kd.distributed.sharding import shard
from lightning_kd.distributed.whole_state import whole_state
from lightning_kd.losses import HintLoss, HybridLoss, KDLoss, MGDLoss, MutualLearning
from lightning_kd.teachers import BornAgain, EMATeacher
from tests import support
from tests.fit.test_stages import Compressed, Initialised
from tests.support import processes

SCENARIOS = {
    "default": lambda: (support.default_losses(), []),
    "layer alone": lambda: ([HintLoss("features", "features")], []),
    # where holes are is drawn by each process
    "MGD without holes": lambda: ([MGDLoss("features", "features", mask_ratio=0.0, weight=7e-5)], []),
    "stage without the student": lambda: ([Compressed(2, "step"), KDLoss()], []),
    "stage of the loss alone": lambda: ([Initialised(2, "step"), KDLoss()], []),
    "born again": lambda: (support.default_losses(), [BornAgain(generations=2)]),
    "mean teacher": lambda: (support.default_losses(), [EMATeacher(decay=0.9)]),
    "mean teacher of a student that normalises": lambda: (support.default_losses(), [EMATeacher(decay=0.9)]),
    "mutual": lambda: ([MutualLearning([support.seeded(lambda: Plain(5), 5)])], []),
    "balanced": lambda: ([HybridLoss([KDLoss(), HintLoss("features", "features")], balance="magnitude")], []),
    "uncertain": lambda: ([HybridLoss([KDLoss(), HintLoss("features", "features")], balance="uncertainty")], []),
}
"""Losses and callbacks; those whose callbacks make the teacher get none. Beside these, the name of a loss is one."""


class Plain(nn.Module):
    """No BatchNorm, whose statistics are each process's own."""

    def __init__(self, width):
        super().__init__()
        self.features = support.Block(nn.Conv2d(1, width, 3, padding=1), nn.ReLU())
        self.head = nn.Linear(width * 16, support.CLASSES)

    def forward(self, x):
        return self.head(self.features(x).flatten(1))


STRATEGIES = {
    "one": dict,
    "ddp": lambda: {"devices": 2, "strategy": DDPStrategy(process_group_backend="gloo")},
    "fsdp2": lambda: {"devices": 2, "strategy": ModelParallelStrategy(2, 1, process_group_backend="gloo")},
}


class ShardedModule(support.UserModule):
    """A module that splits its network itself, as the strategy asks of people."""

    def configure_model(self):
        shard(self.net, self.device_mesh["data_parallel"])


class CountParameters(Callback):
    """Counts what the strategy synchronizes while it trains."""

    def on_train_start(self, trainer, pl_module):
        parameters = list(trainer.strategy.model.parameters())
        self.count = len(parameters)
        self.split = all(isinstance(parameter, DTensor) for parameter in parameters)
        self.buffers = len(getattr(trainer.strategy.model, "modules_buffers", []))  # those that DDP sends in each step


def fit(door, mode, scenario, path):
    make = Plain if scenario in SCENARIOS else partial(support.StagedNet, norm=False)
    make = support.ConvNet if "normalises" in scenario else make
    learner, guide = (support.seeded(lambda width=width: make(width), width) for width in (3, 8))
    before = support.snapshot(guide)
    torch.manual_seed(5)
    parts, callbacks = SCENARIOS.get(scenario, lambda: ([support.default_loss(scenario)], []))()
    teacher = None if callbacks else guide
    if door == "module":
        rate = 0.1 if scenario in SCENARIOS else 0.01  # some defaults have large weights, which enlarge rounding
        optimizer = partial(torch.optim.SGD, lr=rate, momentum=0.9, weight_decay=0.1)
        made = support.module(learner, teacher=teacher, losses=parts, optimizer=optimizer)
        if scenario == "layer alone":  # nothing trains the student's head
            made.task_loss = None
        losses = made.losses
    else:
        callback = DistillationCallback(teacher, parts)
        own = ShardedModule if mode == "fsdp2" else support.UserModule
        made, losses, callbacks = own(learner), callback.losses, [*callbacks, callback]
    options = STRATEGIES[mode]()
    devices = options.get("devices", 1)
    counter = CountParameters()
    rank = int(os.environ.get("LOCAL_RANK", "0"))
    rows = Indexed(support.data())
    sampler = DistributedSampler(rows, num_replicas=devices, rank=rank, shuffle=False)
    train = DataLoader(rows, batch_size=8 // devices, sampler=sampler)
    callbacks = [*callbacks, counter]
    trainer = support.fit(made, train=train, callbacks=callbacks, use_distributed_sampler=False, **options)
    after = whole_state(guide)
    assert trainer.global_rank or mode != "fsdp2" or after.keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in after.items())
    state = {**whole_state(learner), **{f"losses.{k}": v for k, v in whole_state(losses).items()}}
    facts = {
        "tracked": counter.count,
        "split": counter.split,
        "buffers": counter.buffers,
        "teacher": {} if teacher is not None else whole_state(callbacks[0].teacher.module),
        "own": len([*learner.parameters(), *losses.parameters()]),
        "normalises": any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in made.modules()),
    }
    torch.save({"state": state, **facts}, f"{path}.{trainer.global_rank}")


if __name__ == "__main__":
    for name in sys.argv[4:]:
        fit(sys.argv[1], sys.argv[2], name, f"{sys.argv[3]}/{name}")
    processes.leave_group()
