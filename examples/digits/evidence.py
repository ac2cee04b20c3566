"""Does distillation pay? The same student with and without the teacher, over seeds: the README's first table.

Run from the repository's root: python examples/digits/evidence.py --seeds 10
"""

from statistics import mean, stdev

from jsonargparse import auto_cli
from scipy.stats import t

from lightning_kd.commands.fit import run

ALONE = ["--model.teacher=null", "--model.losses=null", "--model.task_weight=1.0"]
METHODS = {
    "no teacher": ("response", ALONE),
    "KD": ("response", []),
    "hint": ("hint", []),
    "KD + hint": ("hybrid", []),
}
LABELS = {"all labels": [], "5 labels a class": ["--data.labelled_per_class=5"]}


def accuracy(config: str, options: list[str], seed: int) -> float:
    """Return the held-out accuracy in percent after one fit."""
    quiet = ["progress_bar", "checkpointing", "model_summary"]
    fit = run(
        ["fit", f"--config=examples/digits/{config}.yaml", f"--seed_everything={seed}", *options]
        + ["--trainer.logger=false", "--summary.enabled=false", "--trainer.default_root_dir=examples/digits/runs"]
        + [f"--trainer.enable_{part}=false" for part in quiet]
    )
    return 100 * fit.model.run.results["accuracy"]


def main(seeds: int = 10) -> None:
    """Print the table.

    Args:
        seeds: Number of seeds, 1 to that number; at least 2.
    """
    factor = float(t.ppf(0.975, seeds - 1)) / seeds**0.5
    for labels, hide in LABELS.items():
        baseline: list[float] = []
        print(
            f"\n| {labels} | accuracy % (95 % interval) | gain over no teacher (paired, 95 % interval) |\n|---|---|---|"
        )
        for name, (config, options) in METHODS.items():
            values = [accuracy(config, [*options, *hide], seed) for seed in range(1, seeds + 1)]
            baseline = baseline or values
            gains = [value - alone for value, alone in zip(values, baseline, strict=True)]
            gain = "" if name == "no teacher" else f"{mean(gains):+.2f} ± {factor * stdev(gains):.2f}"
            print(f"| {name} | {mean(values):.2f} ± {factor * stdev(values):.2f} | {gain} |", flush=True)


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
