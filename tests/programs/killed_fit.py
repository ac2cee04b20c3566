"""Fit scenarios whole, and again in processes that are killed and resumed; a program that forks every run.

``python -m tests.programs.killed_fit PLAN`` reads what to do as JSON, see :func:`carry_out`. Forking from one process
that has imported everything, and started nothing, spares each run the seconds of importing.
"""

import json
import logging
import os
import signal
import sys
import threading
import warnings
from functools import partial
from pathlib import Path

import torch
from lightning.pytorch import Callback
from lightning.pytorch.strategies import DDPStrategy

from tests import support
from tests.support import processes
from tests.support.scenarios import SCENARIOS, fit, outcome

PLACES = ["batch start", "backward", "batch end", "validation", "epoch end", "writing", "written"]
"""Where a process can be killed: before and within a step, before its checkpoint, while that is written, after it."""


class Killer(Callback):
    """Kills at the first time that a place is reached after a number of steps; in one process or in all of them.

    Args:
        place: One of ``PLACES``.
        step: Number of optimizer steps that are done before.
        left: Bytes that are written before a process is killed while it writes a checkpoint.
        alone: The rank that is killed while the others go on; by default all die.
    """

    def __init__(self, place, step, left=1, alone=None):
        self.place, self.step, self.left, self.alone = place, step, left, alone
        if place in ("writing", "written"):
            self.writes = False
            self.save, self.replace = torch.save, os.replace
            torch.save, os.replace = self.while_writing, self.once_written

    def kill(self):
        if self.alone is None:
            os.killpg(0, signal.SIGKILL)
        support.kill()

    def reach(self, trainer, place):
        due = not trainer.sanity_checking and trainer.global_step >= self.step
        if place == self.place and due and self.alone in (None, trainer.global_rank):
            self.kill()

    def while_writing(self, content, file):
        self.writes = content["global_step"] > self.step
        dies = self.writes and self.place == "writing"
        return self.save(content, support.Dying(file, self.left, self.kill) if dies else file)

    def once_written(self, source, target):
        self.replace(source, target)
        if self.writes:
            self.kill()

    def on_train_batch_start(self, trainer, *_):
        self.reach(trainer, "batch start")

    def on_after_backward(self, trainer, *_):
        self.reach(trainer, "backward")

    def on_train_batch_end(self, trainer, *_):
        self.reach(trainer, "batch end")

    def on_validation_batch_end(self, trainer, *_):
        self.reach(trainer, "validation")

    def on_train_epoch_end(self, trainer, *_):
        self.reach(trainer, "epoch end")


def run(name, door, folder, rank, size, kill):
    """Fit in this process, from the last checkpoint in the folder if there is one, to the kill or to the end."""
    begun = any((folder / "checkpoints").glob("last*.ckpt"))
    callbacks = [SCENARIOS[name].saver(folder / "checkpoints", save_last=True)]
    if kill is not None:
        callbacks.insert(0, Killer(**kill))
    options = {"devices": size, "ckpt_path": "last", "seed": 99 if begun else 11}
    if size > 1:
        options["strategy"] = DDPStrategy(process_group_backend="gloo")
    trainer, made = fit(SCENARIOS[name], door, folder / "lines", callbacks=callbacks, rank=rank, size=size, **options)
    torch.save({"all": outcome(trainer, folder / "outcome.ckpt"), "weights": made.state_dict()}, folder / f"{rank}.pt")


def forked(folder, size, work):
    """Do something in processes of their own, that are one group; return how each ended."""
    assert threading.active_count() == 1, "what has threads must not be forked"
    port = support.free_port()
    works = [partial(as_rank, rank, size, port, work) for rank in range(size)]
    return processes.forked(str(folder), works, limit=300, folder=folder)


def as_rank(rank, size, port, work):
    """Do something in a place among the ranks."""
    if size > 1:
        places = {
            "LOCAL_RANK": rank,
            "WORLD_SIZE": size,
            "NODE_RANK": 0,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }
        os.environ |= {name: str(value) for name, value in places.items()}
    work(rank)


def carry_out(plan):
    """Fit each scenario of a plan twice, whole and with its kills, and note how every process ended.

    Args:
        plan: For each run its ``folder``, ``name``, ``door``, ``size`` (number of processes) and ``kills``, each of
            which is the arguments of a ``Killer``. A folder gets a folder ``whole`` and one ``killed``.
    """
    for one in plan:
        ended = {}
        for kind, kills in (("whole", [None]), ("killed", [*one["kills"], None])):
            folder = Path(one["folder"]) / kind
            folder.mkdir(parents=True)
            work = partial(run, one["name"], one["door"], folder)
            ended[kind] = [forked(folder, one["size"], partial(work, size=one["size"], kill=kill)) for kill in kills]
        (folder.parent / "ended.json").write_text(json.dumps(ended))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    carry_out(json.loads(sys.argv[1]))
