"""The table at the end of a run: accuracy and size of student and teacher, and the share of each part of the loss."""

from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_kd.capture.networks import num_parameters
from lightning_kd.fit.find import find_run
from lightning_kd.fit.run import DistillationRun


class DistillationSummary(Callback):
    """Print a table at the end of a fit or test: accuracies, agreement, sizes, and each loss part's share.

    Works with a ``DistillationModule`` and with a ``DistillationCallback``; accuracies are those of the last
    validation (or test) on its first data loader, shares are means over the last epoch.

    Args:
        enabled: Whether to print.
    """

    def __init__(self, enabled: bool = True) -> None:
        self.enabled = enabled

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the table of a fit."""
        self._print(trainer, pl_module)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the table of a test."""
        self._print(trainer, pl_module)

    def _print(self, trainer: Trainer, pl_module: LightningModule) -> None:
        run = find_run(trainer, pl_module)
        if self.enabled and run is not None and trainer.is_global_zero:
            print(f"\n{summary_table(run)}\n")


def summary_table(run: DistillationRun) -> str:
    """Write the table of a run.

    Args:
        run: The run, after at least one evaluation.
    """
    results, student = run.results, num_parameters(run.student)
    lines = []
    if run.teacher is None or run.teacher.module is None:
        lines += [_row("", "student"), _row("accuracy", _percent(results.get("accuracy")))]
        lines += [_row("parameters", f"{student:,}")]
    else:
        teacher = num_parameters(run.teacher.module)
        lines += [_row("", "teacher", "student")]
        lines += [
            _row("accuracy", _percent(results.get("teacher_accuracy")), _percent(results.get("accuracy"))),
            _row("agreement", "", _percent(results.get("agreement"))),
            _row("parameters", f"{teacher:,}", f"{student:,}") + f"   ({teacher / max(student, 1):.1f}x fewer)",
        ]
    shares = run.shares()
    if shares:
        lines += ["", _row("loss part", "weight", "mean", "share")]
        lines += [_row(name, f"{w:g}", f"{mean:.4g}", _percent(share)) for name, w, mean, share in shares]
    return "\n".join(lines)


def _row(name: str, *cells: str) -> str:
    return f"{name:<14}" + "".join(f"{cell:>12}" for cell in cells)


def _percent(fraction: float | None) -> str:
    return "-" if fraction is None else f"{100 * fraction:.1f} %"
