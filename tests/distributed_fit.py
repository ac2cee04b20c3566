"""Fit through one door on one or two processes and write the weights; run as a program by test_distributed.py."""

import os
import sys

import torch
from lightning.pytorch import Callback
from lightning.pytorch.strategies import DDPStrategy
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler

from lightning_kd import DistillationCallback
from tests import support


class Plain(nn.Module):
    """No BatchNorm, whose statistics are each process's own."""

    def __init__(self, width):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.ReLU())
        self.head = nn.Linear(width * 16, support.CLASSES)

    def forward(self, x):
        return self.head(self.features(x).flatten(1))


class CountParameters(Callback):
    """Counts what the strategy synchronizes while it trains."""

    def on_train_start(self, trainer, pl_module):
        self.count = len(list(trainer.strategy.model.parameters()))


def main(door, devices, path):
    learner, guide = (support.seeded(lambda width=width: Plain(width), width) for width in (3, 8))
    before = support.snapshot(guide)
    if door == "module":
        made = support.module(learner, teacher=guide)
        losses, callbacks = made.losses, []
    else:
        callback = DistillationCallback(guide, support.default_losses())
        made, losses, callbacks = support.UserModule(learner), callback.losses, [callback]
    strategy = DDPStrategy(process_group_backend="gloo") if devices > 1 else "auto"
    counter = CountParameters()
    rank = int(os.environ.get("LOCAL_RANK", "0"))
    sampler = DistributedSampler(support.data(), num_replicas=devices, rank=rank, shuffle=False)
    train = DataLoader(support.data(), batch_size=8 // devices, sampler=sampler)
    options = {"strategy": strategy, "devices": devices, "use_distributed_sampler": False}
    trainer = support.fit(made, train=train, callbacks=[*callbacks, counter], **options)
    support.assert_unchanged(guide, before)
    state = {**learner.state_dict(), **{f"losses.{k}": v for k, v in losses.state_dict().items()}}
    torch.save({"state": state, "tracked": counter.count}, f"{path}.{trainer.global_rank}")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
