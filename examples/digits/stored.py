"""The teacher itself against its stored answers, when the images are augmented: accuracy and time, over seeds.

Run from the repository's root: python examples/digits/stored.py --seeds 10
"""

import time
from pathlib import Path
from statistics import mean, stdev
from tempfile import TemporaryDirectory

import numpy as np
import torch
from jsonargparse import auto_cli
from scipy.stats import t

from lightning_kd import cache
from lightning_kd.commands.fit import run
from lightning_kd.data import DigitsConvNet, DigitsDataModule
from lightning_kd.losses import KDLoss
from lightning_kd.teachers import from_checkpoint

FEW = "--data.labelled_per_class=5"
LOOKED_UP = "--model.teacher=CachedTeacher"
ARMS = {
    "the teacher itself": [],
    "stored, 16 views": ["--data.views=16"],
    "stored, 4 views": ["--data.views=4"],
    "stored, not augmented": ["--data.augment=false"],
    "stored of other pixels": ["--data.with_index=true"],
}


def write_stores(folder: Path) -> dict[str, Path]:
    """Store the teacher's answers for each arm."""
    teacher = from_checkpoint(DigitsConvNet(width=32, depth=2), "examples/digits/teacher.safetensors")
    stores = {}
    for name, views in (("stored, 16 views", 16), ("stored, 4 views", 4), ("stored, not augmented", None)):
        digits = DigitsDataModule(views=views, augment=views is not None)
        digits.setup()
        dataset = digits.train_dataloader().dataset
        stores[name] = cache.write(teacher, dataset, folder / name, losses=[KDLoss()])
    # what people do by hand: answers on the images as they are, looked up by row for images that are augmented
    with torch.no_grad():
        logits = teacher.eval()(digits.train_set.tensors[0])
    stores["stored of other pixels"] = folder / "logits.npy"
    np.save(stores["stored of other pixels"], logits.numpy())
    return stores


def fit(options: list[str], seed: int, epochs: int) -> tuple[float, float]:
    """Return the held-out accuracy in percent and the seconds of one fit."""
    quiet = ["progress_bar", "checkpointing", "model_summary"]
    began = time.process_time()
    words = ["fit", "--config=examples/digits/response.yaml", f"--seed_everything={seed}", *options, FEW]
    words += [f"--trainer.max_epochs={epochs}", f"--model.lr_scheduler.init_args.T_max={epochs}"]
    words += ["--trainer.logger=false", "--summary.enabled=false", "--trainer.default_root_dir=examples/digits/runs"]
    words += ["--trainer.limit_val_batches=0", *(f"--trainer.enable_{part}=false" for part in quiet)]
    done = run(words)
    seconds = time.process_time() - began
    digits, student = done.datamodule, done.model.student.eval()
    images, labels = digits.held_out_set.tensors[:2]
    with torch.no_grad():
        return 100 * float((student(images).argmax(1) == labels).float().mean()), seconds


def main(seeds: int = 10, epochs: int = 60) -> None:
    """Print the table.

    Args:
        seeds: Number of seeds, 1 to that number; at least 2.
        epochs: Epochs of a fit; at equal time those with stored answers have more.
    """
    factor = float(t.ppf(0.975, seeds - 1)) / seeds**0.5
    with TemporaryDirectory() as folder:
        stores = write_stores(Path(folder))
        live = 0.0
        print("| 5 labels a class | at equal steps: accuracy % | seconds a fit | at equal time: accuracy % |")
        print("|---|---|---|---|")
        for name, options in ARMS.items():
            given = [*options, *([] if name not in stores else [LOOKED_UP, f"--model.teacher.path={stores[name]}"])]
            results = [fit(given, seed, epochs) for seed in range(1, seeds + 1)]
            seconds = mean(one for _, one in results)
            live = live or seconds
            longer = [one for one, _ in results]
            if live > 1.05 * seconds:
                more = round(epochs * live / seconds)
                longer = [fit(given, seed, more)[0] for seed in range(1, seeds + 1)]
            shown = [f"{mean(v):.2f} ± {factor * stdev(v):.2f}" for v in ([one for one, _ in results], longer)]
            print(f"| {name} | {shown[0]} | {seconds:.1f} | {shown[1]} |", flush=True)


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
