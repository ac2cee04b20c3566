"""The command ``lightning-kd check``: whether a fit can teach its student anything, before it is run."""

import sys
from collections.abc import Sequence

from lightning_kd.commands.building.fit import build
from lightning_kd.commands.building.students import of_student
from lightning_kd.commands.parsing.fit_words import call_with_fit
from lightning_kd.doctor.parts import shares
from lightning_kd.doctor.visit import Report, visit

_QUIET = (
    *("logger=false", "enable_progress_bar=false", "enable_model_summary=false", "limit_val_batches=0"),
    *("num_sanity_val_steps=0", "devices=1", "num_nodes=1", "strategy=auto", "fast_dev_run=false"),
    *("enable_checkpointing=null", "accumulate_grad_batches=1"),
)


def check(words: list[str]) -> None:
    """Look at a fit before it is run.

    Args:
        words: Arguments as on the command line, after ``check``.
    """
    call_with_fit(words, look, "check")


def look(
    config: str | Sequence[str], batches: int = 16, fit_steps: int = 100, strict: bool = False, student: str = ""
) -> None:
    """Set a fit up, compute its first steps without training, and say what is wrong and what to do.

    It shows the teacher's accuracy on the student's own batches, its entropy at the temperature of the losses, the
    size and the share of the gradient of each part of the loss, and whether the student can learn a batch by heart.

    Args:
        config: YAML file of the fit, or the words that follow ``lightning-kd fit``.
        batches: How many batches of the training data to look at.
        fit_steps: How many steps a copy of the student may learn one batch by heart; 0 leaves that out.
        strict: Whether the exit code is 1 if there is a warning.
        student: Which of several students to look at; by default each of them.

    Raises:
        FileNotFoundError: If there is no such configuration.
        ValueError: If the fit is refused at set-up, or there is no such student.
    """
    if batches < 1 or fit_steps < 0:
        raise ValueError(f"expected --batches >= 1 and --fit_steps >= 0, got {batches} and {fit_steps}.")
    more = [*(f"--trainer.{option}" for option in _QUIET), "--summary.enabled=false"]
    fit = build(config, more=more)
    runs = {name: member.run for name, member in fit.chosen(student).items()}
    reports = visit(runs, fit.module, fit.data, fit.trainer, batches=batches, fit_steps=fit_steps)
    print("\n\n".join(of_student(name, _text(report)) for name, report in reports.items()))
    if strict and any(finding.is_sure for report in reports.values() for finding in report.findings):
        sys.exit(1)


def _text(report: Report) -> str:
    own, its = report.sizes
    sizes = f"student {own:,} parameters"
    if its is not None:
        sizes += f", teacher {its:,} ({its / max(own, 1):.1f}x)"
    lines = [sizes, f"before the fit, on {report.rows:,} training samples:"]
    for role, (hits, rows) in report.accuracies.items():
        lines.append(f"  {role + ' accuracy':<28}{hits / max(rows, 1):>8.1%}")
    for temperature, share in report.entropies.items():
        lines.append(f"  {f'teacher entropy at T={temperature:g}':<28}{share:>8.1%}   of the largest there is")
    if report.by_heart is not None:
        lines.append(f"  {'one batch by heart':<28}{report.by_heart[0]:>8} of {report.by_heart[1]} samples")
    if report.parts:
        lines += ["", f"  {'part':<20}{'weight':>10}{'value':>12}{'gradient':>12}{'share':>9}{'cosine to task':>16}"]
    share_of = shares(report.parts)
    for part in report.parts:
        cosine = f"{part.cosine:.2f}" if part.cosine == part.cosine else "-"
        lines.append(
            f"  {part.name:<20}{part.weight:>10g}{part.value:>12.4g}{part.size:>12.4g}"
            f"{share_of[part.name]:>9.1%}{cosine:>16}"
        )
    lines += ["", *(f"{'WARNING' if one.is_sure else 'hint'}: {one}" for one in report.findings)]
    return "\n".join(lines if report.findings else [*lines, "Nothing is wrong as far as can be seen."])
