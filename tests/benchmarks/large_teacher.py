"""Fit one step on two processes with a large teacher and tell each process's peak of own memory; a program.

python -m tests.benchmarks.large_teacher whole|split|meta FILE
"""

import sys
import threading
from functools import partial
from pathlib import Path

import torch
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch import nn
from torch.utils.data import DataLoader

from lightning_kd import DistillationModule
from lightning_kd.losses import KDLoss
from tests import support
from tests.support import processes

WIDTH, LAYERS, CLASSES = 2048, 24, 10


class Teacher(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(LAYERS)])
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x).relu()
        return self.head(x)


class Peak(threading.Thread):
    """Watches the memory that is this process's own, without pages of files that it only reads."""

    def __init__(self):
        super().__init__(daemon=True)
        self.start_at = self.now()
        self.highest = 0
        self.done = threading.Event()

    @staticmethod
    def now():
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024

    def run(self):
        while not self.done.wait(0.002):
            self.highest = max(self.highest, self.now() - self.start_at)


def main(mode, file):
    peak = Peak()
    peak.start()
    with torch.device("meta" if mode == "meta" else "cpu"):
        teacher = Teacher()
    weights = file if mode == "meta" else None
    student = nn.Sequential(nn.Linear(WIDTH, 16), nn.ReLU(), nn.Linear(16, CLASSES))
    optimizer = partial(torch.optim.SGD, lr=0.01)
    module = DistillationModule(student, teacher, [KDLoss()], optimizer=optimizer, teacher_weights=weights)
    strategy = DDPStrategy(process_group_backend="gloo") if mode == "whole" else ModelParallelStrategy(2, 1)
    trainer = support.trainer(devices=2, strategy=strategy, max_epochs=1)
    trainer.fit(module, DataLoader(torch.randn(32, WIDTH), batch_size=8))
    after = peak.now() - peak.start_at
    peak.done.set()
    print(f"\nPEAK {peak.highest:.0f} AFTER {after:.0f}", flush=True)
    processes.leave_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
