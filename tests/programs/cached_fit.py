"""Fit with the teacher itself and with its stored answers in two processes, and write the weights; a program.

python -m tests.programs.cached_fit ddp|fsdp2 STORE FOLDER
"""

import sys

import torch
from torch.utils.data import DataLoader

from lightning_kd.distributed.whole_state import whole_state
from lightning_kd.teachers import CachedTeacher
from tests import support
from tests.programs.distributed_fit import STRATEGIES, Plain
from tests.support import processes


def fit(mode, guide, path):
    torch.manual_seed(11)
    student = support.seeded(lambda: Plain(3), 3)
    module = support.module(student, teacher=guide)
    trainer = support.trainer(**STRATEGIES[mode](), limit_val_batches=0)
    # the sampler for several processes gives one sample twice, so that all have as many
    trainer.fit(module, DataLoader(support.data(23), batch_size=4, shuffle=True))
    torch.save(whole_state(student), f"{path}.{trainer.global_rank}")


if __name__ == "__main__":
    mode, store, folder = sys.argv[1:]
    fit(mode, support.teacher(), f"{folder}/live")
    fit(mode, CachedTeacher(store), f"{folder}/stored")
    processes.leave_group()
