"""The table at the end of a run: accuracy and size of student and teacher, and the share of each part of the loss."""

from collections.abc import Mapping

from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_kd.capture.networks import num_parameters
from lightning_kd.fit.find import find_runs
from lightning_kd.fit.run import DistillationRun

_OF_TASK = ("accuracy", "f1", "mse", "pearson", "cosine", "perplexity")
_TO_TEACHER = ("agreement", "mse_to_teacher", "pearson_to_teacher", "cosine_to_teacher")
_SHARES = ("accuracy", "f1", "agreement")
_WIDTH = 14


class DistillationSummary(Callback):
    """Print a table at the end of a fit or test: accuracies, agreement, sizes, and each loss part's share.

    Of a task without classes the table has what was measured in their place, such as ``mse`` or ``cosine_to_teacher``.

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
        if not self.enabled or not trainer.is_global_zero:
            return
        for name, run in find_runs(trainer, pl_module).items():
            print(f"\nStudent {name!r}\n\n{summary_table(run)}\n" if name else f"\n{summary_table(run)}\n")


def summary_table(run: DistillationRun) -> str:
    """Write the table of a run.

    Args:
        run: The run, after at least one evaluation.
    """
    student = num_parameters(run.student)
    task, alike = _measures(run.results)
    width = max(_WIDTH, *(len(name) + 1 for name in alike))
    lines = []
    if run.teacher is None or run.teacher.module is None:
        lines += [_row("", "student")]
        lines += [_row(name, _value(name, run.results.get(name))) for name in task]
        lines += [_row("parameters", f"{student:,}")]
    else:
        teacher = num_parameters(run.teacher.module)
        lines += [_row("", "teacher", "student", width=width)]
        for name in task:
            values = (_value(name, run.results.get(key)) for key in (f"teacher_{name}", name))
            lines += [_row(name, *values, width=width)]
        lines += [_row(name, "", _value(name, run.results.get(name)), width=width) for name in alike]
        sizes = _row("parameters", f"{teacher:,}", f"{student:,}", width=width)
        lines += [f"{sizes}   ({teacher / max(student, 1):.1f}x fewer)"]
    shares = run.shares()
    if shares:
        lines += ["", _row("loss part", "weight", "mean", "share")]
        lines += [_row(name, f"{w:g}", f"{mean:.4g}", _percent(share)) for name, w, mean, share in shares]
    return "\n".join(lines)


def _measures(results: Mapping[str, float]) -> tuple[list[str], list[str]]:
    """Return what was measured against the targets, and of the student against the teacher; of classes if nothing."""
    task = [name for name in _OF_TASK if name in results or f"teacher_{name}" in results]
    alike = [name for name in _TO_TEACHER if name in results]
    if not task and set(alike) <= {"agreement"}:
        return ["accuracy"], ["agreement"]
    return task, alike or ["agreement"]


def _row(name: str, *cells: str, width: int = _WIDTH) -> str:
    return f"{name:<{width}}" + "".join(f"{cell:>12}" for cell in cells)


def _value(name: str, value: float | None) -> str:
    return _percent(value) if name in _SHARES or value is None else f"{value:.4g}"


def _percent(fraction: float | None) -> str:
    return "-" if fraction is None else f"{100 * fraction:.1f} %"
