"""Run the matrix: ``python -m tests.matrix --write`` brings the table in the README beside it up to date.

``--sample 2`` runs as many cells as have every pair of values, ``--sample 3`` every three; other arguments are texts
that a cell must have to be run.
The complaints go to the standard error, a table of what was run to the standard output.
"""

import argparse
import sys

from tests.matrix.cells import product, sample
from tests.matrix.run import judge
from tests.matrix.table import render, write


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.matrix", description=__doc__)
    parser.add_argument("texts", nargs="*")
    parser.add_argument("--sample", type=int, choices=(2, 3))
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args(arguments)
    if options.write and (options.sample or options.texts):
        parser.error("--write takes the whole matrix")
    cells = sample(product(), options.sample) if options.sample else list(product())
    verdicts = judge([cell for cell in cells if all(text in str(cell) for text in options.texts)])
    for cell, complaints in verdicts.items():
        if complaints:
            print(f"{cell}: {'; '.join(complaints)}", file=sys.stderr)
    table = render(verdicts)
    print(table, end="")
    if options.write:
        write(table)
    return int(any(verdicts.values()))


if __name__ == "__main__":
    sys.exit(main())
