"""Fit a language model in one process or two, with whole logits or fused, and write the weights; a program.

python -m tests.programs.token_fit one|ddp|fsdp2 FOLDER
"""

import os
import sys
from functools import partial

import torch
from torch.utils.data import DataLoader

from lightning_kd import DistillationModule
from lightning_kd.distributed.whole_state import whole_state
from lightning_kd.losses import TokenKDLoss
from tests import support
from tests.losses.tokens.test_fused_in_fit import NamedHead
from tests.losses.tokens.test_in_fit import BATCH, texts
from tests.programs.distributed_fit import STRATEGIES
from tests.support import processes

WAYS = {
    "whole": {"fused": False},
    "fused": {"fused": True},
    "recompute": {"fused": True, "memory": "recompute"},
    "tied": {"fused": True},
    "tied whole": {"fused": False},
}


def batches(devices, rank):
    """Two batches of texts of unequal length; of two processes one gets the long text, the other the short ones."""
    rows = slice(None) if devices == 1 else (slice(0, 1), slice(1, None))[rank]
    return [{name: value[rows] for name, value in batch.items()} for batch in (BATCH, texts(5, 6, 2, seed=1))]


def network(width, *, tied):
    made = support.seeded(lambda: NamedHead(width), width)
    if tied:
        made.head.weight = made.embedding.weight
    return made


def fit(mode, way, path):
    student, teacher = (network(width, tied="tied" in way) for width in (4, 8))
    loss = TokenKDLoss("jsd", shift=True, cross_entropy=0.5, **WAYS[way])
    module = DistillationModule(student, teacher, [loss], optimizer=partial(torch.optim.SGD, lr=0.5))
    options = STRATEGIES[mode]()
    loader = DataLoader(batches(options.get("devices", 1), int(os.environ.get("LOCAL_RANK", "0"))), batch_size=None)
    limits = {"max_epochs": 1, "use_distributed_sampler": False}
    trainer = support.trainer(**limits, **options)
    trainer.fit(module, loader, loader)
    torch.save(whole_state(student), f"{path}.{trainer.global_rank}")
    means = {name: value for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
    torch.save(means, f"{path}.means.{trainer.global_rank}")


if __name__ == "__main__":
    for name in WAYS:
        fit(sys.argv[1], name, f"{sys.argv[2]}/{name}")
    processes.leave_group()
