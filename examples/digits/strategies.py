"""All thirteen strategies on digits, over seeds: the README's second table.

Run from the repository's root: python examples/digits/strategies.py --seeds 3

Every strategy is made by DistillationStrategyType.X.create() without options and added to the task; nothing was tuned.
The student (3,628 parameters), its schedule and the teacher (288,170 parameters, 99.3 %) are those of the YAML files
beside this one.
"""

import logging
import os
import warnings
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from statistics import mean, stdev

import torch
from jsonargparse import auto_cli
from lightning import Trainer, seed_everything
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR

from lightning_kd import DistillationModule, DistillationStrategyType
from lightning_kd.data import DigitsConvNet, DigitsDataModule
from lightning_kd.teachers import from_checkpoint

TEACHER = "examples/digits/teacher.safetensors"
LABELS = {"all labels": None, "5 labels a class": 5}


def accuracy(strategy: int | None, labelled_per_class: int | None, seed: int, epochs: int) -> float:
    """Return the held-out accuracy in percent after one fit; without a strategy there is no teacher."""
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    seed_everything(seed, verbose=False)
    member = None if strategy is None else DistillationStrategyType(strategy)
    needs_index = member is DistillationStrategyType.CONTRASTIVE_BASED
    module = DistillationModule(
        student=DigitsConvNet(width=6),
        teacher=None if member is None else from_checkpoint(DigitsConvNet(width=32, depth=2), TEACHER),
        losses=None if member is None else [member.create()],
        task_loss=nn.CrossEntropyLoss(),
        optimizer=partial(SGD, lr=0.05, momentum=0.9, weight_decay=0.0005, nesterov=True),
        lr_scheduler=partial(CosineAnnealingLR, T_max=epochs),
    )
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(
        max_epochs=epochs, accelerator="cpu", enable_model_summary=False, check_val_every_n_epoch=epochs, **quiet
    )
    trainer.fit(module, datamodule=DigitsDataModule(labelled_per_class=labelled_per_class, with_index=needs_index))
    return 100 * module.run.results["accuracy"]


def main(seeds: int = 3, epochs: int = 60, jobs: int | None = None) -> None:
    """Print the table.

    Args:
        seeds: Number of seeds, 1 to that number; at least 2.
        epochs: Epochs of each fit.
        jobs: Fits at a time, one thread each; by default one a core.
    """
    rows: list[int | None] = [None, *(int(strategy) for strategy in DistillationStrategyType)]
    with ProcessPoolExecutor(jobs or os.cpu_count(), mp_context=get_context("spawn")) as pool:
        fits = {
            (row, shown, seed): pool.submit(accuracy, row, shown, seed, epochs)
            for row in rows
            for shown in LABELS.values()
            for seed in range(1, seeds + 1)
        }
        print(f"| strategy | loss | {' | '.join(f'{name}: accuracy %' for name in LABELS)} |")
        print("|---|---|" + "---|" * len(LABELS))
        for row in rows:
            member = None if row is None else DistillationStrategyType(row)
            cells = []
            for shown in LABELS.values():
                values = [fits[row, shown, seed].result() for seed in range(1, seeds + 1)]
                cells.append(f"{mean(values):.2f} ± {stdev(values):.2f}")
            names = ("no teacher", "") if member is None else (member.name, type(member.create()).__name__)
            print(f"| {names[0]} | {names[1]} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
