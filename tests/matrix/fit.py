"""Fit one cell and return the facts by which it is judged."""

import datetime
import os
from functools import partial

import torch
from lightning.pytorch import Callback
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch.utils.data import DataLoader, DistributedSampler

from lightning_kd.data import Indexed
from lightning_kd.distributed.whole_state import whole
from tests import support
from tests.support import processes

BOUND = {"norm": 0.1, "value": 0.01}
"""What gradients are clipped to, small enough to bind in every step."""
STEPS = 2
BATCH = 8
_GROUP = {"process_group_backend": "gloo", "timeout": datetime.timedelta(seconds=60)}
_STRATEGIES = {
    "1 process": lambda: "auto",
    "DDP": lambda: DDPStrategy(**_GROUP),
    "DDP, find unused": lambda: DDPStrategy(**_GROUP, find_unused_parameters=True),
    "FSDP2": lambda: ModelParallelStrategy(2, 1, **_GROUP),
}


class Watch(Callback):
    """Keeps the loss of every batch, and size and largest entry of the gradient before and after clipping."""

    def __init__(self, parameters, student):
        self.parameters, self.student = parameters, student
        self.losses, self.before, self.after = [], [], []
        self.gradient = None

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.before.append(self._size())

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.losses.append(float(outputs["loss"]))
        if len(self.before) > len(self.after):
            self.after.append(self._size())
            if self.gradient is None:
                self.gradient = _flat(self.student)

    def _size(self):
        gradient = _flat(self.parameters)
        return {"norm": float(gradient.norm()), "value": float(gradient.abs().max())}


def fit(cell):
    """Fit a cell in this process, which is one of the cell's processes."""
    torch.compiler.reset()
    learner, guide = (support.seeded(partial(support.StagedNet, width, norm=False), width) for width in (3, 8))
    before, taught = support.snapshot(learner), support.snapshot(guide)
    options = {} if cell.gather else {"gather": False}
    net, taught_by = _compiled(cell, learner, guide)
    made = support.module(
        net,
        teacher=taught_by,
        losses=[support.default_loss(cell.loss, **options)],
        optimizer=partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.1),
    )
    watch = Watch(made.parameters, learner.parameters)
    trainer = support.trainer(
        max_steps=STEPS,
        max_epochs=-1,
        strategy=_STRATEGIES[cell.mode](),
        devices=cell.processes,
        precision=cell.precision,
        accumulate_grad_batches=1 if cell.whole else cell.accumulate,
        gradient_clip_val=BOUND[cell.clip],
        gradient_clip_algorithm=cell.clip,
        use_distributed_sampler=False,
        callbacks=[watch],
        limit_val_batches=0,
    )
    torch.manual_seed(11)
    trainer.fit(made, _loader(cell), support.loader())
    mesh = getattr(trainer.strategy, "device_mesh", None)
    norms = {n: m for n, m in made.losses.named_modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)}
    statistics = {f"{name}.{buffer}" for name, norm in norms.items() for buffer in norm._buffers}
    (loss_name, loss), *_ = made.losses.items()
    each_its_own = {*statistics, *(f"{loss_name}.{buffer}" for buffer in loss.local_buffers)}
    state, shown = ({n: _whole(value) for n, value in net.state_dict().items()} for net in (learner, guide))
    facts = {
        "losses": watch.losses,
        "before": watch.before,
        "after": watch.after,
        "gradient": watch.gradient,
        "state": state,
        "own": {name: _whole(value) for name, value in made.losses.state_dict().items() if name not in each_its_own},
        "changed": {name: not torch.equal(value.to(before[name]), before[name]) for name, value in state.items()},
        "teacher intact": all(torch.equal(value, taught[name].to(value.dtype)) for name, value in shown.items()),
        "formats": {
            "student": _formats(learner.parameters()),
            "teacher": _formats(guide.parameters()),
            "memory": _formats(buffer for name, buffer in made.losses.named_buffers() if name not in statistics),
        },
        "normalises": bool(norms),
    }
    if mesh is not None:  # Lightning 2.6 leaves its groups, each with threads of its own; a matrix has hundreds
        processes.leave_groups(mesh)
    return facts


def _compiled(cell, learner, guide):
    """Compile as people do: the student as a whole, both networks in place, or for FSDP2 the blocks that it splits."""
    if cell.compiled == "eager":
        return learner, guide
    how = {"fullgraph": True, "backend": cell.compiled}
    if cell.mode == "FSDP2":
        for net in (learner, guide):
            net.stage1.compile(**how)
            net.stage2.compile(**how)
        return learner, guide
    if cell.clip == "norm":
        return torch.compile(learner, **how), guide
    learner.compile(**how)
    return learner, torch.compile(guide, **how)


def _loader(cell):
    rows = Indexed(support.data(STEPS * BATCH * cell.accumulate))
    rank = int(os.environ.get("LOCAL_RANK", "0"))
    sampler = DistributedSampler(rows, num_replicas=cell.processes, rank=rank, shuffle=False)
    size = BATCH * cell.accumulate if cell.whole else BATCH
    return DataLoader(rows, batch_size=size // cell.processes, sampler=sampler)


def _whole(tensor):
    """A copy of a tensor, put together if processes hold parts of it."""
    return whole(tensor.detach()).clone()


def _flat(parameters):
    gradients = [_whole(torch.zeros_like(p) if p.grad is None else p.grad) for p in parameters()]
    return torch.cat([gradient.double().flatten() for gradient in gradients])


def _formats(tensors):
    return sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors if tensor.is_floating_point()})
