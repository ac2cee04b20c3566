"""Does distillation pay, and where? Two students in fonts they have never seen, over paired seeds: the README's table.

Run from the repository's root: python examples/glyphs/evidence.py --seeds 5
"""

import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from tempfile import TemporaryDirectory
from typing import Literal

import torch
from jsonargparse import auto_cli
from scipy.stats import t

from lightning_kd.commands.cache import cache
from lightning_kd.commands.fit import run

CONFIG = "--config=examples/glyphs/kd.yaml"
ALONE = ["--model.teacher=null", "--model.losses=null", "--model.task_weight=1.0"]
TEN = ["--data.labelled_per_class=10"]
ALL_LABELS, TEN_LABELS = "alone, all labels", "alone, 10 labels"
LOOKED_UP = ["--model.teacher=CachedTeacher", "--model.teacher.path={store}"]
ARMS = {
    ALL_LABELS: ALONE,
    # its 620 images again and again, and augmented, without which it fails
    TEN_LABELS: [*ALONE, *TEN, "--data.only_labelled=true", "--data.augment=true"],
    "KD, all labels": LOOKED_UP,
    "KD, no label": [*LOOKED_UP, "--model.task_loss=null", "--model.losses.kd.weight=1.0"],
}
Arm = Literal["alone, all labels", "alone, 10 labels", "KD, all labels", "KD, no label"]
STUDENTS = {"16k": (12, (*ARMS,)), "5k": (6, (ALL_LABELS, "KD, all labels"))}
"""Width, and the rows of its table."""


def fit(width: int, arm: str, seed: int, steps: int, store: str, held_out: str = "test") -> tuple[float, float]:
    """Return the accuracy in held-out fonts, in percent, and the seconds of processor time of one fit."""
    quiet = [f"--trainer.enable_{part}=false" for part in ("progress_bar", "checkpointing", "model_summary")]
    quiet += ["--trainer.logger=false", "--summary.enabled=false", "--trainer.limit_val_batches=0"]
    quiet += ["--trainer.default_root_dir=examples/glyphs/runs"]
    words = ["fit", CONFIG, f"--model.student.init_args.width={width}", f"--seed_everything={seed}", *quiet]
    words += [f"--trainer.max_steps={steps}", f"--model.lr_scheduler.init_args.total_steps={steps}"]
    words += [f"--data.held_out={held_out}", *(option.format(store=store) for option in ARMS[arm])]
    began = time.process_time()
    done = run(words)
    seconds = time.process_time() - began
    images, labels = done.datamodule.held_out_set.tensors[:2]
    with torch.no_grad():
        answers = done.model.student.eval()(images).argmax(1)
    return 100 * float((answers == labels).float().mean()), seconds


def interval(values: Sequence[float], sign: str = "") -> str:
    """Return the mean and the half width of its 95 % interval, by Student's t."""
    half = float(t.ppf(0.975, len(values) - 1)) * stdev(values) / len(values) ** 0.5
    return f"{mean(values):{sign}.2f} ± {half:.2f}"


def row(arm: str, found: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    """Return a row of the table: the differences are paired by seed."""
    accuracies = {name: [accuracy for accuracy, _ in results] for name, results in found.items()}
    cells = [arm, interval(accuracies[arm])]
    for baseline in (ALL_LABELS, TEN_LABELS):
        pairs = zip(accuracies[arm], accuracies.get(baseline, []), strict=False)
        gains = [] if arm == baseline else [one - other for one, other in pairs]
        cells.append(interval(gains, "+") if gains else "")
    return f"| {' | '.join(cells)} | {mean(seconds for _, seconds in found[arm]):.0f} |"


def main(
    seeds: int = 5,
    steps: int = 800,
    held_out: Literal["validation", "test"] = "test",
    students: list[Literal["16k", "5k"]] | None = None,
    arms: list[Arm] | None = None,
) -> None:
    """Print the tables.

    Args:
        seeds: Number of seeds, 1 to that number; at least 2.
        steps: Steps of each fit.
        held_out: Which fonts the accuracies are of; ``validation`` for choices.
        students: Which students to train; by default both.
        arms: Which rows to make; by default all. A difference needs its baseline among them, and before it.
    """
    sys.path.append(os.getcwd())  # as lightning-kd does: the configuration names a class of this folder
    with TemporaryDirectory() as folder:
        store = str(Path(folder) / "answers")
        cache([CONFIG, f"--output={store}"])
        for name in students or STUDENTS:
            width, all_arms = STUDENTS[name]
            columns = f"accuracy % | beside {ALL_LABELS} | beside {TEN_LABELS} | seconds a fit"
            print(f"\n| student of {name} | {columns} |\n|---|---|---|---|---|")
            found: dict[str, list[tuple[float, float]]] = {}
            for arm in arms or all_arms:
                found[arm] = [fit(width, arm, seed, steps, store, held_out) for seed in range(1, seeds + 1)]
                print(row(arm, found), flush=True)


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
