"""Fit on two processes whose batches differ in size, down to none, and write the weights; a program."""

import os
import sys
import warnings
from functools import partial

import torch
from lightning.pytorch.strategies import DDPStrategy

from lightning_kd import DistillationCallback
from lightning_kd.data import Indexed
from lightning_kd.losses import HybridLoss, KDLoss, RKDLoss
from tests import support
from tests.support import processes

SIZES = [(4, 0), (0, 4), (4, 4), (1, 3), (3, 0)]
"""Rows of the first and the second process in each step."""
LOSSES = {
    "average": lambda: [KDLoss(temperature=2.0), RKDLoss("embedding", "embedding", weight=2.0)],
    "balanced": lambda: [HybridLoss([KDLoss(), RKDLoss("embedding", "embedding")], balance="magnitude")],
    "broken": lambda: [KDLoss()],
}
"""Beside these, the name of a loss is one."""


class Batches:
    """Ready batches of given sizes, with their rows."""

    def __init__(self, sizes):
        self.dataset = Indexed(support.data())
        x, y = support.data().tensors
        rows = torch.arange(sum(sizes)).split(sizes)
        self.batches = [(x[row], y[row], row) for row in rows]

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        return iter(self.batches)


def sizes_of(rank, scenario):
    """The batch sizes of one process, which reads the data from the beginning like the other."""
    return [pair[rank] for pair in ([SIZES[0], SIZES[2]] if scenario == "average" else SIZES)]


def networks():
    return [support.seeded(partial(support.StagedNet, width, norm=False), width) for width in (3, 5)]


class OwnModule(support.UserModule):
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05)


def fit(door, scenario, path):
    rank = int(os.environ.get("LOCAL_RANK", "0"))
    learner, guide = networks()
    torch.manual_seed(5)
    losses = LOSSES.get(scenario, lambda: [support.default_loss(scenario)])()
    if door == "module":
        decay = {} if scenario == "average" else {"momentum": 0.9, "weight_decay": 0.1}
        optimizer = partial(torch.optim.SGD, lr=0.01 if decay else 0.05, **decay)
        made = support.module(learner, teacher=guide, losses=losses, optimizer=optimizer)
        parts, callbacks = made.losses, []
    else:
        callbacks = [DistillationCallback(guide, losses)]
        made, parts = OwnModule(learner), callbacks[0].losses
    train = Batches(sizes_of(rank, scenario))
    if scenario == "broken" and rank == 1:
        train.batches[2][0][0] = float("nan")
    strategy = DDPStrategy(process_group_backend="gloo")
    epochs = 1 if scenario == "average" else 2
    options = {"strategy": strategy, "devices": 2, "use_distributed_sampler": False, "max_epochs": epochs}
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        support.fit(made, train=train, callbacks=callbacks, limit_val_batches=0, **options)
    told = [str(one.message) for one in said if "holds no samples" in str(one.message)]
    state = {**learner.state_dict(), **{f"losses.{k}": v for k, v in parts.state_dict().items()}}
    torch.save({"state": state, "told": told}, f"{path}.{rank}")


if __name__ == "__main__":
    for name in sys.argv[3:]:
        fit(sys.argv[1], name, f"{sys.argv[2]}/{name}")
    processes.leave_group()
