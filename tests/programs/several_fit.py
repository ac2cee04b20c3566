"""Fit several students together and each alone, in two processes, and write the weights; a program.

python -m tests.programs.several_fit FOLDER
"""

import sys
from functools import partial

import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import nn
from torch.utils.data import DataLoader

from lightning_kd import DistillationModule
from lightning_kd.losses import FTLoss, KDLoss
from tests import support
from tests.support import processes

WIDTHS = {"small": 4, "tiny": 3}


def fit(folder, names):
    nets = {n: support.seeded(partial(support.StagedNet, WIDTHS[n], norm=False), WIDTHS[n]) for n in names}
    guide = support.seeded(partial(support.StagedNet, 8, norm=False), 7)
    losses = [FTLoss(stage_length=2, stage_unit="step", stage_lr=0.01), KDLoss()]  # parameters unused in a stage
    options = {"teacher": guide, "losses": losses, "task_loss": nn.CrossEntropyLoss()}
    options["optimizer"] = partial(torch.optim.SGD, lr=0.1, momentum=0.9)
    alone = names[0] if len(names) == 1 else None
    made = DistillationModule(**({"students": nets} if alone is None else {"student": nets[alone]}), **options)
    torch.manual_seed(11)
    trainer = support.trainer(strategy=DDPStrategy(process_group_backend="gloo"), devices=2, gradient_clip_val=0.5)
    trainer.fit(made, DataLoader(support.data(23), batch_size=4, shuffle=True), support.loader(batch_size=5))
    logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
    weights = {name: net.state_dict() for name, net in nets.items()}
    torch.save({"weights": weights, "logged": logged}, f"{folder}/{'+'.join(names)}.{trainer.global_rank}")


if __name__ == "__main__":
    (folder,) = sys.argv[1:]
    for names in (["small", "tiny"], ["small"], ["tiny"]):
        fit(folder, names)
    processes.leave_group()
