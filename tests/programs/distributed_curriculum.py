"""Fit with a curriculum on two processes and write what each has seen; run as a program by test_curriculum.py."""

import os
import sys

import torch
from lightning.pytorch.strategies import DDPStrategy
from torch.utils.data import DistributedSampler

from lightning_kd import DistillationModule
from lightning_kd.losses import KDLoss
from tests import support
from tests.curriculum.test_curriculum import Rows, Seen, curriculum, loader, teacher_of_rows
from tests.support import processes


def main(mode, path):
    made, seen = curriculum(start=0.5, length=2), Seen()
    options = {"strategy": DDPStrategy(process_group_backend="gloo"), "devices": 2, "max_epochs": 3}
    train = loader(batch_size=4)
    if mode == "user":
        rank = int(os.environ.get("LOCAL_RANK", "0"))
        train = loader(batch_size=4, shuffle=False, sampler=DistributedSampler(Rows(), num_replicas=2, rank=rank))
        options["use_distributed_sampler"] = False
    module = DistillationModule(support.student(), teacher_of_rows(), [KDLoss(temperature=2.0)])
    seed = 11 + int(os.environ.get("LOCAL_RANK", "0"))  # each process has its own: the draws must agree all the same
    trainer = support.fit(module, seed=seed, train=train, callbacks=[made, seen], **options)
    rows = [seen.rows(epoch) for epoch in range(3)]
    torch.save({"rows": rows, "difficulty": made.difficulty}, f"{path}.{trainer.global_rank}")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
    processes.leave_group()
