"""Export from two processes in every way that people do; a program."""

import os
import sys
import time
from pathlib import Path

import torch
from lightning.pytorch import Callback
from lightning.pytorch.strategies import DDPStrategy

from lightning_kd.export import student as export
from tests import support
from tests.support import processes

RANK = int(os.environ.get("LOCAL_RANK", "0"))
seen = {}


def slowly(write):
    """Let a function take long, so that who does not wait for it comes too early."""

    def wrapped(*args):
        time.sleep(1.0)
        write(*args)

    return wrapped


class Midway(Callback):
    """Both processes export in the middle of a fit; then the first one alone, as people write it; then both again."""

    def __init__(self, folder):
        self.folder = folder

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if batch_idx > 0:
            return
        for suffix in ("pt", "pt2"):
            pl_module.export(self.folder / f"both.{suffix}")
            seen[suffix] = (self.folder / f"both.{suffix}").is_file()
        try:
            pl_module.export(self.folder / "file" / "a.pt")  # where "file" is no folder
        except Exception as error:
            seen["error"] = f"{type(error).__name__}: {error}"
        if trainer.is_global_zero:
            pl_module.export(self.folder / "alone.pt")
        pl_module.export(self.folder / f"again{RANK}.pt")
        seen["state"] = support.snapshot(pl_module.student)


def main(folder):
    export._write_weights = slowly(export._write_weights)
    export._write_program = slowly(export._write_program)
    made = support.module()
    strategy = DDPStrategy(process_group_backend="gloo")
    support.fit(made, callbacks=[Midway(folder)], strategy=strategy, devices=2, max_epochs=1)
    torch.save({**seen, "rank": torch.distributed.get_rank()}, folder / f"seen{RANK}.pt")
    processes.leave_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
