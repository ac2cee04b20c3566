"""Train with Fabric on one process, or on several that share each batch, and write the weights; a program.

python -m tests.programs.distributed_fabric DEVICES FOLDER
"""

import sys
from functools import partial

import torch
from lightning.fabric import Fabric
from torch.utils.data import DataLoader

from lightning_kd.data import Indexed
from tests import support
from tests.programs.distributed_fit import Plain
from tests.support import processes

SCENARIOS = {"default": support.default_losses, "bank": lambda: [support.default_loss("CRDLoss")]}


def train(fabric, scenario):
    learner, guide = (support.seeded(partial(Plain, width), width) for width in (3, 8))
    module = support.module(learner, teacher=guide, losses=SCENARIOS[scenario]())
    data = Indexed(support.data())
    for loss in module.losses.values():
        if loss.needs_index:
            loss.set_dataset(len(data), data.targets)
    batches = list(DataLoader(data, batch_size=8))
    torch.manual_seed(5)
    module.prepare(batches[0])
    model, optimizer = fabric.setup(module, module.configure_optimizers())
    for step, batch in enumerate(batches):
        module.set_moment(step)
        mine = [part[fabric.global_rank :: fabric.world_size] for part in batch]
        with fabric.autocast():
            loss = model.training_step(mine, step)
        fabric.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
    sent = [] if fabric.world_size == 1 else [name for name, _ in model._forward_module.named_buffers()]
    kept = getattr(module, "_ddp_params_and_buffers_to_ignore", set())
    return {"state": module.state_dict(), "sent": [name for name in sent if name.removeprefix("module.") not in kept]}


if __name__ == "__main__":
    devices, folder = int(sys.argv[1]), sys.argv[2]
    fabric = Fabric(accelerator="cpu", devices=devices, strategy="ddp" if devices > 1 else "auto")
    fabric.launch()
    for scenario in SCENARIOS:
        torch.save(train(fabric, scenario), f"{folder}/{scenario}.{devices}.{fabric.global_rank}")
    processes.leave_group()
