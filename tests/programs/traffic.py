"""Fit on two processes and write what they send in each step; a program.

python -m tests.programs.traffic FOLDER SCENARIO...
"""

import os
import sys
from functools import partial

import torch
import torch.distributed as dist
from lightning.pytorch import Callback
from lightning.pytorch.strategies import DDPStrategy
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.utils.data import DataLoader

from lightning_kd.data import Indexed
from tests import support
from tests.support import processes

SENT = {"gradients": 0, "buffers": 0, "gathered": 0, "reduced": 0}
SCENARIOS = {
    "KDLoss": ("KDLoss", {}, {}),
    "HintLoss": ("HintLoss", {}, {}),
    "HintLoss accumulating": ("HintLoss", {}, {"accumulate_grad_batches": 3}),
    "FTLoss": ("FTLoss", {}, {}),
    "OFDLoss": ("OFDLoss", {}, {}),
    "CRDLoss": ("CRDLoss", {"dim": 5}, {}),
    "CRDLoss alone": ("CRDLoss", {"dim": 5, "gather": False}, {}),
    "RKDLoss": ("RKDLoss", {}, {}),
    "RKDLoss alone": ("RKDLoss", {"gather": False}, {}),
}
"""The loss, its options, and the Trainer's."""


def counting(group, bucket):
    SENT["gradients"] += bucket.buffer().numel() * bucket.buffer().element_size()
    return allreduce_hook(group, bucket)


class Ledger(Callback):
    """Keeps what was sent in each batch."""

    def __init__(self):
        self.batches = []

    def on_train_start(self, trainer, pl_module):
        trainer.strategy.model.register_comm_hook(None, counting)  # Lightning does so on CUDA only

    def on_train_batch_start(self, trainer, *_):
        SENT.update(dict.fromkeys(SENT, 0))
        SENT["buffers"] = sum(b.numel() * b.element_size() for b in trainer.strategy.model.modules_buffers)

    def on_train_batch_end(self, *_):
        self.batches.append(dict(SENT))


def fit(scenario):
    name, options, trainer_options = SCENARIOS[scenario]
    learner, guide = (support.seeded(partial(support.StagedNet, width, norm=False), width) for width in (3, 8))
    made = support.module(learner, teacher=guide, losses=[support.default_loss(name, **options)])
    ledger = Ledger()
    rows = DataLoader(Indexed(support.data(48)), batch_size=4)
    strategy = DDPStrategy(process_group_backend="gloo")
    support.fit(
        made,
        train=rows,
        strategy=strategy,
        devices=2,
        callbacks=[ledger],
        max_epochs=1,
        max_steps=6,
        limit_val_batches=0,
        **trainer_options,
    )
    sizes = {
        part: sum(4 * p.numel() for p in net.parameters() if p.requires_grad)
        for part, net in (("student", learner), ("losses", made.losses))
    }
    norms = [part for part in made.losses.modules() if isinstance(part, torch.nn.modules.batchnorm._BatchNorm)]
    statistics = sum(b.numel() * b.element_size() for norm in norms for b in norm.buffers())
    return {"batches": ledger.batches, "statistics": statistics, **sizes}


def watch(name, key):
    original = getattr(dist, name)

    def counted(*args, **kwargs):
        tensor = args[1] if name == "all_gather" else args[0]
        SENT[key] += tensor.numel() * tensor.element_size()
        return original(*args, **kwargs)

    setattr(dist, name, counted)


if __name__ == "__main__":
    watch("all_gather", "gathered")
    watch("all_reduce", "reduced")
    for chosen in sys.argv[2:]:
        torch.save(fit(chosen), f"{sys.argv[1]}/{chosen}.{os.environ.get('LOCAL_RANK', '0')}")
    processes.leave_group()
