"""Write the file of each scenario that has none; what is there stays as it is.

``python -m tests.golden.checkpoints.write`` from the root of the repository, see README.md. With a folder as argument
the files of all scenarios are written there, to compare.
"""

import logging
import os
import sys
import tempfile
import warnings
from pathlib import Path

import lightning
import torch

from tests.golden.checkpoints.archive import FOLDER, environment, path_of, record, write
from tests.golden.checkpoints.scenarios import ROOT, SCENARIOS
from tests.support import processes


def git(*words: str) -> str:
    """Return what git answers."""
    (done,) = processes.run([["git", *words]], cwd=ROOT, limit=60)
    return done.stdout.strip()


def main(folder: Path = FOLDER) -> None:
    """Write what is missing in a folder."""
    if git("status", "--porcelain", "lightning_kd"):
        sys.exit("lightning_kd has changes that are not committed; a checkpoint must name the commit that wrote it.")
    os.chdir(ROOT)
    torch.set_num_threads(1)
    commit = git("log", "-1", "--format=%H", "--", "lightning_kd")
    written = environment() | {"commit": commit, "lightning": lightning.__version__}
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    for name in SCENARIOS:
        path = path_of(name, folder)
        if not path.exists():
            with tempfile.TemporaryDirectory() as work:
                write(record(name, Path(work), written), path)
            print(f"{path.name}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
