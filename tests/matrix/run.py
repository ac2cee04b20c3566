"""Fit many cells in three forked processes: one alone and two together, so that the imports are paid for once."""

import gc
import logging
import os
import tempfile
import traceback
import warnings
from functools import partial
from pathlib import Path

import torch

from tests import support
from tests.matrix.cells import with_references
from tests.matrix.fit import fit
from tests.matrix.verdict import complaints
from tests.support import processes

_COLLECT = 10
"""After how many fits garbage is collected: a group that was left keeps its threads until then, and they poll."""


def judge(cells):
    """Fit cells, and those they are compared with, and return the complaints about each, see ``complaints``."""
    facts = run(with_references(cells))
    return {cell: complaints(cell, facts) for cell in cells}


def run(cells):
    """Fit cells and return what each process of each cell found."""
    alone, shared = ([cell for cell in cells if cell.processes == count] for count in (1, 2))
    together = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": support.free_port(), "WORLD_SIZE": "2", "NODE_RANK": "0"}
    jobs = [(alone, {}), *((shared, {**together, "LOCAL_RANK": rank}) for rank in ("0", "1"))]
    facts = {cell: [] for cell in cells}
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / str(number) for number in range(len(jobs))]
        works = [partial(_fit, *job, path) for job, path in zip(jobs, paths, strict=True)]
        codes = processes.forked("the matrix", works, limit=120 + len(cells))
        if any(codes):
            raise RuntimeError(f"Processes of the matrix ended with {codes}.")
        for (part, _), path in zip(jobs, paths, strict=True):
            for cell, found in zip(part, torch.load(path, weights_only=True), strict=True):
                facts[cell].append(found)
    return facts


def _fit(cells, environment, path):
    os.environ.update(environment)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    found = []
    for number, cell in enumerate(cells):
        found.append(_found(cell))
        if number % _COLLECT == 0:
            gc.collect()
    torch.save(found, path)
    processes.leave_group()


def _found(cell):
    try:
        return fit(cell)
    except Exception as error:  # the cell's verdict, not the end of the matrix
        if "MATRIX_TRACE" in os.environ:
            traceback.print_exc()
        return {"error": f"{type(error).__name__}: {error}"}
