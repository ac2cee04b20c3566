"""What works on which family: ``python -m tests.ecosystem.family_table --write`` brings the README up to date."""

import argparse
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import torch

from lightning_kd.hf import student_from_teacher
from lightning_kd.losses import AttentionMatrixLoss, DistillationLoss, HiddenStateLoss, KDLoss, TokenKDLoss
from tests.ecosystem.families import FAMILIES, WIDE, batch_of
from tests.ecosystem.test_families import fit

README = Path(__file__).parent / "README.md"
BEGIN, END = "<!-- families -->\n", "<!-- end of the families -->\n"
COLUMNS = ("logits", "hidden states", "attention", "cut to a layer")


def trained(name: str, loss: DistillationLoss) -> bool:
    """Train one step; whether the loss is finite, and its gradient reaches the student."""
    recorder, metrics, _ = fit(name, [batch_of(name)], losses=[loss], task=False)
    reached = sum(float(g.abs().sum()) for n, g in recorder.gradients.items() if n.startswith("student."))
    return reached > 0 and metrics["train/loss"].isfinite().item()


def logits(name: str) -> str:
    """Whether the logits never stand whole, or do; KDLoss compares classes, whose logits are small."""
    if FAMILIES[name].of_classes:
        return "✓" if trained(name, KDLoss()) else "WRONG"
    try:
        return "fused" if trained(name, TokenKDLoss(fused=True)) else "WRONG"
    except ValueError:
        return "whole" if trained(name, TokenKDLoss()) else "WRONG"


def of_blocks(loss: type) -> Callable[[str], str]:
    def judge(name: str) -> str:
        block = FAMILIES[name].blocks.format(1)
        return "✓" if trained(name, loss(block, block)) else "WRONG"

    return judge


def cut(name: str) -> str:
    """Whether a student of the first of two layers computes something else, that is finite."""
    teacher = FAMILIES[name].make(WIDE).eval()
    student = student_from_teacher(teacher, layers=[0]).eval()
    with torch.no_grad():
        ours, theirs = (network(**batch_of(name)).logits for network in (student, teacher))
    return "✓" if ours.isfinite().all() and not torch.equal(ours, theirs) else "WRONG"


JUDGES = dict(zip(COLUMNS, (logits, of_blocks(HiddenStateLoss), of_blocks(AttentionMatrixLoss), cut), strict=True))


def judge(name: str, column: str) -> str:
    """Return the mark of a cell, or why it is refused."""
    try:
        return JUDGES[column](name)
    except ValueError as error:
        return str(error).splitlines()[0]


def render(cells: dict[tuple[str, str], str]) -> str:
    """Return the table, and the reasons of what is refused as lettered notes."""
    marks = ("✓", "fused", "whole", "WRONG")
    reasons = list(dict.fromkeys(cell for cell in cells.values() if cell not in marks))
    lines = [f"| family | {' | '.join(COLUMNS)} |", f"|---|{'---|' * len(COLUMNS)}"]
    for name in dict.fromkeys(row for row, _ in cells):
        of_row = [cells[name, column] for column in COLUMNS]
        shown = [cell if cell in marks else f"({chr(97 + reasons.index(cell))})" for cell in of_row]
        lines.append(f"| {name} | {' | '.join(shown)} |")
    notes = [f"| ({chr(97 + i)}) | {reason} |" for i, reason in enumerate(reasons)]
    return "\n".join([*lines, "", *(["| | what is said |", "|---|---|", *notes, ""] if notes else [])])


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.ecosystem.family_table", description=__doc__)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    cells = {(name, column): judge(name, column) for name in FAMILIES for column in COLUMNS}
    table = render(cells)
    print(table, end="")
    if options.write:
        before, _, rest = README.read_text().partition(BEGIN)
        README.write_text(f"{before}{BEGIN}\n{table}\n{END}{rest.partition(END)[2]}")
    return int("WRONG" in cells.values())


if __name__ == "__main__":
    sys.exit(main())
