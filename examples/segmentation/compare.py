"""Does distilling a segmentation network pay? Mean IoU of the student alone, and taught by KD and by CWD.

Run from the repository's root, after the teacher was trained:

    python -m examples.segmentation.teacher
    python -m examples.segmentation.compare --seeds 3
"""

import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import mean, stdev
from typing import Literal

from jsonargparse import auto_cli
from torch import nn

from examples.segmentation.fit import fit, mean_iou
from examples.segmentation.networks import make_student, make_teacher
from examples.segmentation.teacher import WEIGHTS
from lightning_kd.losses import CWDLoss, DistillationLoss, KDLoss
from lightning_kd.teachers import from_checkpoint

ALONE = "student alone"
Method = Literal["KD", "CWD on class scores", "CWD on features"]
METHODS: dict[str, Callable[[], list[DistillationLoss]] | None] = {
    ALONE: None,
    "KD": lambda: [KDLoss(temperature=4.0)],
    "CWD on class scores": lambda: [CWDLoss("classifier", "classifier", weight=3.0)],
    "CWD on features": lambda: [CWDLoss("backbone.4", "backbone.4", weight=3.0)],
}
T_975 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
"""Student's t by degrees of freedom: 95 % of it lies between minus and plus this value."""


def taught(method: str, seed: int, images: int, steps: int, weights: str) -> nn.Module:
    """Return a student after one fit."""
    make = METHODS[method]
    teacher = None if make is None else from_checkpoint(make_teacher(), weights)
    return fit(make_student(seed), images, steps, seed, teacher=teacher, losses=None if make is None else make())


def reached(method: str, seed: int, images: int, steps: int, held_out: int, weights: str) -> float:
    """Return the mean IoU of a student after one fit, in percent."""
    return mean_iou(taught(method, seed, images, steps, weights), held_out)


def interval(values: list[float], sign: str = "") -> str:
    """Write the mean of values and half the width of its 95 % interval."""
    if len(values) < 2:
        return f"{mean(values):{sign}.1f}"
    return f"{mean(values):{sign}.1f} ± {T_975[len(values) - 1] * stdev(values) / len(values) ** 0.5:.1f}"


def main(
    seeds: int = 3,
    images: int = 200,
    steps: int = 250,
    held_out: int = 500,
    methods: list[Method] | None = None,
    weights: str = WEIGHTS,
    jobs: int | None = None,
) -> dict[str, list[float]]:
    """Print the table, and return the mean IoU of each seed by method.

    Args:
        seeds: Number of seeds, 1 to that number; at most 10.
        images: How many labelled images the student sees.
        steps: Steps of 16 images of each fit.
        held_out: On how many images the students are measured.
        methods: Which methods are compared with the student alone; by default all.
        weights: The teacher's weights.
        jobs: Fits at a time, one thread each; by default one a core.
    """
    if not Path(weights).is_file():
        raise SystemExit(f"There is no {weights}. Train the teacher first: python -m examples.segmentation.teacher")
    chosen = [ALONE, *(method for method in METHODS if method != ALONE and method in (methods or METHODS))]
    print("| | mean IoU, % | more than alone, same seed |")
    print("|---|---|---|")
    with ProcessPoolExecutor(jobs or os.cpu_count(), mp_context=get_context("spawn")) as pool:
        of_teacher = pool.submit(_of_teacher, held_out, weights)
        fits = {
            (method, seed): pool.submit(reached, method, seed, images, steps, held_out, weights)
            for seed in range(1, seeds + 1)
            for method in chosen
        }
        print(f"| teacher | {of_teacher.result():.1f} | |", flush=True)
        found: dict[str, list[float]] = {}
        for method in chosen:
            found[method] = [fits[method, seed].result() for seed in range(1, seeds + 1)]
            gain = [one - alone for one, alone in zip(found[method], found[ALONE], strict=True)]
            print(
                f"| {method} | {interval(found[method])} | {'' if method == ALONE else interval(gain, '+')} |",
                flush=True,
            )
    return found


def _of_teacher(held_out: int, weights: str) -> float:
    return mean_iou(from_checkpoint(make_teacher(), weights), held_out)


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
