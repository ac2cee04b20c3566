"""The table of the README beside this file, out of the verdicts of a run."""

from pathlib import Path

from tests.matrix.cells import FAMILIES, MODES, PRECISIONS, Cell

README = Path(__file__).parent / "README.md"
BEGIN, END = "<!-- matrix -->\n", "<!-- /matrix -->"


def render(verdicts: dict[Cell, list[str]]) -> str:
    """One line a loss; a cell of the table stands for all fits of that loss in that way."""
    losses = list(dict.fromkeys(cell.loss for cell in verdicts))
    columns = [(mode, precision) for mode in MODES for precision in PRECISIONS]
    names = [f"{mode}: {precision}" for mode, precision in columns]
    lines = [["strategy", "loss", *names], ["---"] * (2 + len(names))]
    for loss in losses:
        family = f"`{FAMILIES[loss]}`" if loss in FAMILIES else ""
        marks = [_mark([bad for cell, bad in verdicts.items() if _is(cell, loss, *column)]) for column in columns]
        lines.append([family, f"`{loss}`", *marks])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def shown() -> str:
    """The table that the README has."""
    return README.read_text().split(BEGIN)[1].split(END)[0]


def write(table: str) -> None:
    """Put a table in the place of the one in the README."""
    before, rest = README.read_text().split(BEGIN)
    README.write_text(f"{before}{BEGIN}{table}{END}{rest.split(END)[1]}")


def _is(cell: Cell, loss: str, mode: str, precision: str) -> bool:
    return (cell.loss, cell.mode, cell.precision) == (loss, mode, precision)


def _mark(complaints: list[list[str]]) -> str:
    wrong = sum(bool(one) for one in complaints)
    return f"{wrong} of {len(complaints)} wrong" if wrong else f"{len(complaints)} ✓"
