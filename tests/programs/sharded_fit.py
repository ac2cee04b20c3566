"""Fit under FSDP2 in special ways and write what came out; a program of two processes.

    python -m tests.programs.sharded_fit FOLDER SCENARIO...

The folder holds ``teacher.safetensors`` and ``student.safetensors``, see ``teacher`` and ``student``.
"""

import sys
from functools import partial
from pathlib import Path

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.fsdp import CPUOffloadPolicy
from torch.distributed.tensor import DTensor

from lightning_kd import DistillationCallback, DistillationModule
from lightning_kd.distributed.sharding import shard
from lightning_kd.distributed.whole_state import whole_state
from lightning_kd.teachers import materialize
from tests import support
from tests.programs.distributed_fit import Plain, ShardedModule
from tests.support import processes


class Offloaded(DistillationModule):
    """Keeps the teacher's parts in the CPU's memory."""

    def shard_teacher(self, teacher, mesh):
        shard(teacher, mesh, reshard_after_forward=True, offload_policy=CPUOffloadPolicy(pin_memory=False))


class Replicated(DistillationModule):
    """Gives every process the whole teacher."""

    def shard_teacher(self, teacher, mesh):
        pass


class Loaded(DistillationModule):
    """Gives a student on the meta device its weights once it is split."""

    def shard_student(self, student, mesh):
        super().shard_student(student, mesh)
        materialize(student, Path(self.trainer.default_root_dir) / "student.safetensors", "cpu")


class Weighted(torch.nn.Module):
    """A task's loss with weights that train."""

    def __init__(self):
        super().__init__()
        self.bias = torch.nn.Parameter(torch.zeros(support.CLASSES))

    def forward(self, logits, target):
        return torch.nn.functional.cross_entropy(logits + self.bias, target)


def teacher():
    return support.seeded(partial(Plain, 8), 8)


def student():
    return support.seeded(partial(Plain, 3), 3)


def by_module(folder, net=None, guide=None, cls=DistillationModule, task_loss=None, **options):
    return cls(
        student() if net is None else net,
        teacher() if guide is None else guide,
        support.default_losses(),
        task_loss=torch.nn.CrossEntropyLoss() if task_loss is None else task_loss,
        optimizer=partial(torch.optim.SGD, lr=0.1, momentum=0.9),
        **options,
    ), []


def by_callback(folder, guide=None, **options):
    guide = teacher() if guide is None else guide
    return ShardedModule(student()), [DistillationCallback(guide, support.default_losses(), **options)]


def compiled(folder):
    made, callbacks = by_module(folder)
    for network in (made.student, made.teacher):
        network.features.compile(backend="aot_eager")
    return made, callbacks


SCENARIOS = {
    "module": by_module,
    "callback": by_callback,
    "teacher on meta": lambda folder: by_module(
        folder, guide=teacher().to("meta"), teacher_weights=f"{folder}/teacher.safetensors"
    ),
    "teacher on meta, callback": lambda folder: by_callback(
        folder, guide=teacher().to("meta"), teacher_weights=f"{folder}/teacher.safetensors"
    ),
    "student on meta": lambda folder: by_module(folder, net=student().to("meta"), cls=Loaded),
    "own format": lambda folder: by_module(folder, teacher_dtype=torch.bfloat16),
    "offloaded": lambda folder: by_module(folder, cls=Offloaded),
    "replicated": lambda folder: by_module(folder, cls=Replicated),
    "compiled": compiled,
    "weights in the task's loss": lambda folder: by_module(folder, task_loss=Weighted()),
}


def fit(made, callbacks, folder, seed=11, ckpt_path=None, **options):
    return support.fit(
        made,
        seed=seed,
        train=support.ResumableLoader(),
        ckpt_path=ckpt_path,
        devices=2,
        callbacks=callbacks,
        default_root_dir=folder,
        strategy=ModelParallelStrategy(2, 1, **options),
    )


def run(scenario, folder):
    name, _, kind = scenario.partition(" resumed from ")
    made, callbacks = SCENARIOS[name](folder)
    if kind:
        options = {"save_distributed_checkpoint": kind == "a folder"}
        saved = folder / kind / name
        fit(made, [*callbacks, support.SaveEveryStep(saved)], folder, **options)
        made, callbacks = SCENARIOS[name](folder)
        trainer = fit(made, callbacks, folder, seed=12, ckpt_path=saved / "4.ckpt", **options)  # within an epoch
    else:
        trainer = fit(made, callbacks, folder)
    guide = made.teacher if isinstance(made, DistillationModule) else callbacks[0].teacher.module
    parameters = list(guide.parameters())
    facts = {
        "student": whole_state(made.student if isinstance(made, DistillationModule) else made.net),
        "teacher": whole_state(guide),
        "split": all(isinstance(p, DTensor) and p.to_local().numel() < p.numel() for p in parameters),
        "dtype": str(parameters[0].dtype),
    }
    if isinstance(getattr(made, "task_loss", None), Weighted):
        facts |= {"task": whole_state(made.task_loss), "task split": isinstance(made.task_loss.bias, DTensor)}
    if trainer.global_rank == 0:
        torch.save(facts, folder / f"{scenario}.pt")


if __name__ == "__main__":
    for scenario in sys.argv[2:]:
        run(scenario, Path(sys.argv[1]))
    processes.leave_group()
