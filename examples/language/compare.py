"""Does distilling a language model pay? Bits per byte by divergence, at equal steps and at equal time.

Run from the repository's root: python examples/language/compare.py --seeds 3
"""

import logging
import math
import os
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import pairwise
from multiprocessing import get_context
from statistics import mean, median, stdev
from typing import Any, Literal

import torch
from data import SourceDataModule
from jsonargparse import auto_cli
from lightning import Callback, Trainer, seed_everything
from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import OneCycleLR

from lightning_kd import DistillationModule, hf
from lightning_kd.losses import DistillationLoss, HiddenStateLoss, TokenKDLoss
from lightning_kd.teachers import from_checkpoint

TEACHER = "examples/language/teacher.safetensors"
TEXTS = {"all text": None, "64 kB of text": 65536}
T_975 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
"""Student's t by degrees of freedom: 95 % of it lies between minus and plus this value."""
ALONE = "student alone"
Method = Literal["forward KL", "reverse KL", "JSD", "skew forward KL", "forward KL + hidden states"]
Text = Literal["all text", "64 kB of text"]
METHODS: dict[str, Callable[[], list[DistillationLoss]] | None] = {
    ALONE: None,
    "forward KL": lambda: [TokenKDLoss("forward_kl", weight=0.5)],
    "reverse KL": lambda: [TokenKDLoss("reverse_kl", weight=0.5)],
    "JSD": lambda: [TokenKDLoss("jsd", weight=0.5)],
    "skew forward KL": lambda: [TokenKDLoss("skew_forward_kl", weight=0.5)],
    "forward KL + hidden states": lambda: [
        TokenKDLoss("forward_kl", weight=0.5),
        HiddenStateLoss("model.layers.1", "model.layers.3", weight=0.1),
    ],
}


def student() -> nn.Module:
    """Make the student, with random weights."""
    return llama(width=48, layers=2)


def teacher() -> nn.Module:
    """Make the teacher, with the weights that ship."""
    return from_checkpoint(llama(width=96, layers=4), TEACHER)


def llama(width: int, layers: int) -> nn.Module:
    """Make a small language model of bytes."""
    return hf.from_config(
        {
            "model_type": "llama",
            "vocab_size": 256,
            "hidden_size": width,
            "num_hidden_layers": layers,
            "num_attention_heads": 3,
            "intermediate_size": width * 8 // 3,
            "max_position_embeddings": 128,
            "tie_word_embeddings": True,
            "use_cache": False,
        }
    )


class Clock(Callback):
    """Measures the seconds of each training step, as processor time: other programs do not count."""

    def __init__(self) -> None:
        self.marks: list[float] = []

    def on_train_batch_start(self, *_: Any) -> None:
        """Note when a step begins, which is when the one before has ended."""
        self.marks.append(time.process_time())

    def seconds(self) -> float:
        """Return the middle one, without those of the beginning."""
        return median(later - earlier for earlier, later in pairwise(self.marks[5:]))


def fit(method: str, train_bytes: int | None, seed: int, steps: int) -> tuple[nn.Module, float]:
    """Return a student after one fit, and the seconds of a step."""
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    seed_everything(seed, verbose=False)
    make = METHODS[method]
    module = DistillationModule(
        student=student(),
        teacher=None if make is None else teacher(),
        losses=None if make is None else make(),
        task_loss="model",
        task_weight=1.0 if make is None else 0.5,
        optimizer=partial(AdamW, lr=0.004, weight_decay=0.1),
        lr_scheduler=partial(OneCycleLR, max_lr=0.004, total_steps=steps, pct_start=0.1, cycle_momentum=False),
        lr_interval="step",
    )
    clock = Clock()
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(
        max_epochs=-1,
        max_steps=steps,
        accelerator="cpu",
        gradient_clip_val=1.0,
        limit_val_batches=0,
        callbacks=[clock],
        enable_model_summary=False,
        **quiet,
    )
    trainer.fit(module, datamodule=SourceDataModule(batch_size=8, train_bytes=train_bytes))
    return module.student, clock.seconds()


@torch.no_grad()
def bits_per_byte(network: nn.Module, held_out_bytes: int) -> float:
    """Return the mean number of bits that a byte of the test files costs."""
    torch.set_num_threads(1)
    data = SourceDataModule(batch_size=64, held_out_bytes=held_out_bytes)
    data.setup()
    total, number = 0.0, 0
    for batch in data.test_dataloader():
        predicted = batch["labels"][:, 1:].numel()
        total += float(network.eval()(**batch).loss) * predicted
        number += predicted
    return total / number / math.log(2)


def bits(method: str, train_bytes: int | None, seed: int, steps: int, held_out_bytes: int) -> float:
    """Return the bits per byte of the student after one fit."""
    return bits_per_byte(fit(method, train_bytes, seed, steps)[0], held_out_bytes)


def bits_of_teacher(held_out_bytes: int) -> float:
    """Return the bits per byte of the teacher."""
    return bits_per_byte(teacher(), held_out_bytes)


def costs(methods: list[str], steps: int, rounds: int = 3) -> dict[str, float]:
    """Return how many times as long as a step of the student alone one of each method takes, measured in turn."""
    found: dict[str, list[float]] = {method: [] for method in methods}
    for _ in range(rounds):
        seconds = {method: fit(method, 65536, 1, steps)[1] for method in methods}
        for method in methods:
            found[method].append(seconds[method] / seconds[ALONE])
    return {method: median(values) for method, values in found.items()}


def interval(values: list[float], sign: str = "") -> str:
    """Write the mean of values and half the width of its 95 % interval."""
    return f"{mean(values):{sign}.3f} ± {T_975[len(values) - 1] * stdev(values) / len(values) ** 0.5:.3f}"


def main(
    seeds: int = 3,
    steps: int = 400,
    methods: list[Method] | None = None,
    texts: list[Text] | None = None,
    held_out_bytes: int = 250_000,
    jobs: int | None = None,
) -> None:
    """Print the tables.

    Args:
        seeds: Number of seeds, 1 to that number; 2 to 10.
        steps: Steps of each fit, 20 or more; the student alone is fitted for longer too.
        methods: Which methods are compared with the student alone; by default all.
        texts: What the student may read; by default both.
        held_out_bytes: Bytes of the test files that are read.
        jobs: Fits at a time, one thread each; by default one a core.
    """
    chosen = [ALONE, *(method for method in METHODS if method != ALONE and method in (methods or METHODS))]
    with ProcessPoolExecutor(jobs or os.cpu_count(), mp_context=get_context("spawn")) as pool:
        cost = pool.submit(costs, chosen, min(steps, 25)).result()  # nothing else runs meanwhile
        print(f"teacher: {pool.submit(bits_of_teacher, held_out_bytes).result():.3f} bits per byte")
        longer = round(steps * cost[chosen[1]])
        rows = {
            f"{ALONE}, {steps} steps": (ALONE, steps),
            f"{ALONE}, {longer} steps": (ALONE, longer),
            **{method: (method, steps) for method in chosen[1:]},
        }
        sizes = {text: size for text, size in TEXTS.items() if text in (texts or TEXTS)}
        fits = {
            (text, row, seed): pool.submit(bits, method, size, seed, number, held_out_bytes)
            for text, size in sizes.items()
            for seed in range(1, seeds + 1)
            for row, (method, number) in rows.items()
        }
        for text in sizes:
            found = {row: [fits[text, row, seed].result() for seed in range(1, seeds + 1)] for row in rows}
            alone, as_long = list(found.values())[:2]
            print(f"\n| {text} | a step's time | bits per byte | gain at equal steps | gain at equal time |")
            print("|---|---|---|---|---|")
            for row, (method, number) in rows.items():
                values, gains = found[row], ["", ""]
                if method != ALONE:
                    gains = [
                        interval([before - now for before, now in zip(base, values, strict=True)], "+")
                        for base in (alone, as_long)
                    ]
                elif number != steps:
                    gains = [interval([before - now for before, now in zip(alone, values, strict=True)], "+"), ""]
                print(f"| {row} | {cost[method]:.2f} | {interval(values)} | {' | '.join(gains)} |", flush=True)


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
