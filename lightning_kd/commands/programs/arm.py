"""The program that runs one unit of ``lightning-kd compare``: ``python -m lightning_kd.commands.programs.arm FOLDER``.

The folder holds the job and the configuration of its fit; what came of it is written there too. The program ends when
its input does, so that it never outlives the comparison that has started it.
"""

import math
import os
import sys
import threading
import time
import traceback
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_only

from lightning_kd.capture.networks import num_parameters
from lightning_kd.commands.building.fit import Building
from lightning_kd.commands.fit import DistillationCLI
from lightning_kd.commands.parsing.refusals import refusal
from lightning_kd.comparison.forks import end_now, serve
from lightning_kd.comparison.measure import Measure, peak_memory
from lightning_kd.comparison.study import Outcome
from lightning_kd.comparison.trial import PROGRESS, RESULT, Job, write_json
from lightning_kd.comparison.weights import LossSizes, weights_of
from lightning_kd.metrics import AgreementOnMistakes, CalibrationError
from lightning_kd.metrics.given import name_metrics
from lightning_kd.module import DistillationModule

CONFIGURATION = "fit.yaml"
SCORES = {"accuracy": True, "f1": True, "mse": False, "pearson": True, "cosine": True, "perplexity": False}
"""What a score may be, in the order of choice, and whether a larger one is better."""


class Configured(Building):
    """A fit that is built and not run, and tells its whole configuration."""

    def configuration(self) -> dict[str, Any]:
        """Return all options of the fit as plain data."""
        options = yaml.safe_load(self._parser("fit").dump(self.config["fit"], skip_validation=True))
        return {name: value for name, value in options.items() if name != "config"}


def build(words: list[str]) -> Configured:
    """Build module, data and Trainer as the words of a fit say, and run nothing."""
    return Configured(args=words, save_config_callback=None)


def built(configuration: Path) -> Configured:
    """Build what a file says."""
    return build(["fit", "--config", str(configuration)])


def run(folder: Path) -> Outcome:
    """Run the unit of a folder.

    Args:
        folder: The folder with the job.
    """
    job = Job.read(folder)
    # last, so that no file of the user's hides a package
    sys.path += [os.path.abspath(entry) for entry in job.path if os.path.abspath(entry) not in sys.path]
    begun = time.perf_counter()
    if job.threads is not None:
        torch.set_num_threads(job.threads)
    cli = built(folder / CONFIGURATION)
    trainer: Any = cli.trainer
    if job.kind == "scale":
        return _sizes(cli)
    epochs = trainer.max_epochs
    stop = None if job.stop_after is None or not epochs or epochs < 0 else max(1, round(epochs * job.stop_after))
    measure = Measure(folder / PROGRESS, stop)
    trainer.callbacks.append(measure)
    _fit(cli)
    memory, steps = peak_memory(), trainer.global_step
    numbers = _evaluated(cli, job, folder)
    name = job.score or next((name for name in SCORES if name in numbers), None)
    if name not in numbers:
        there = ", ".join(numbers) or "none; the data has no rows to evaluate on, or the task is not known"
        raise ValueError(f"There is no number {name!r} to score by. There are: {there}.")
    score = numbers[name]
    higher = _higher_is_better(name, cli.model)
    others: dict[str, float | None] = {
        **numbers,
        "step_time": measure.step_time,
        "peak_memory": memory,
        "steps": steps,
        "parameters": num_parameters(cli.model.student),
        "seconds": time.perf_counter() - begun,
    }
    metrics = {key: float(value) for key, value in others.items() if value is not None and math.isfinite(value)}
    if not math.isfinite(score):
        return Outcome("nan", metrics=metrics, error=f"The score {name} is {score:g}.")
    return Outcome("ok", score, metrics, scored=name, higher_is_better=higher)


def _fit(cli: DistillationCLI) -> None:
    cli.trainer.fit(cli.model, datamodule=cli.datamodule)
    if cli.trainer.interrupted:
        raise KeyboardInterrupt


def _sizes(cli: DistillationCLI) -> Outcome:
    sizes = LossSizes()
    trainer: Any = cli.trainer
    trainer.callbacks = [*trainer.callbacks, sizes]
    trainer.num_sanity_val_steps = 0
    _fit(cli)
    weights = weights_of(sizes.sizes, sizes.names)
    return Outcome("ok", 0.0, {f"weight {number}": weight for number, weight in enumerate(weights)})


def _higher_is_better(name: str, module: DistillationModule) -> bool:
    """Whether a larger number of a name is better; that of a loss or an error is not."""
    own = {"agreement": True, **SCORES}
    metric = name_metrics(module.metrics).get(name)
    if name in own:
        return own[name]
    if metric is not None and metric.higher_is_better is not None:
        return bool(metric.higher_is_better)
    return not any(word in name for word in ("loss", "error"))


def _evaluated(cli: DistillationCLI, job: Job, folder: Path) -> dict[str, float]:
    """Compare the trained student with the teacher, also that of an arm without one."""
    path = folder / ".evaluation.yaml"
    path.write_text(yaml.safe_dump(dict(job.evaluation)))
    judge = built(path)
    path.unlink()
    module: DistillationModule = judge.model
    module.student.load_state_dict(cli.model.student.state_dict())
    module.metrics = {
        "agreement_on_mistakes": AgreementOnMistakes(),
        "calibration_error": CalibrationError(),
        **name_metrics(module.metrics),
    }
    trainer: Trainer = judge.trainer
    evaluate = trainer.test if job.split == "test" else trainer.validate
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        evaluate(module, datamodule=cli.datamodule, verbose=False)
    logged = {
        name.removeprefix(f"{job.split}/").removesuffix("/dataloader_idx_0"): float(value)
        for name, value in trainer.callback_metrics.items()
        if name.startswith(f"{job.split}/") and (name.endswith("idx_0") or "/dataloader_idx_" not in name)
    }
    return {**logged, **module.run.results}


def main() -> None:
    """Run the unit of the folder that is named on the command line; without one, those that the input names."""
    sys.path.append(os.getcwd())
    if len(sys.argv) < 2:
        serve(attempt)
        return
    threading.Thread(target=_end_with_input, daemon=True).start()
    code = attempt(Path(sys.argv[1]))
    sys.stdout.flush()
    sys.exit(code)


def attempt(folder: Path) -> int:
    """Run the unit of a folder, write what came of it, and return the exit code."""
    try:
        outcome = run(folder)
    except Exception as error:  # any error of a user's network is a row of the table, with its reason
        traceback.print_exc()
        status: Any = "nan" if isinstance(error, FloatingPointError) else "failed"
        outcome = Outcome(status, error=refusal(error) or f"{type(error).__name__}: {error}")
    if getattr(rank_zero_only, "rank", 0) == 0:
        write_json(folder / RESULT, asdict(outcome))
    return 0 if outcome.status == "ok" else 1


def _end_with_input() -> None:
    """End this process when whoever started it has ended, however that was."""
    while os.read(0, 1024):
        pass
    end_now()


if __name__ == "__main__":
    main()
