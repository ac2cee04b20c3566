"""One unit of work in a process of its own: nothing of the arms before it is there, and its memory is its own."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import lightning_kd
from lightning_kd.comparison.forks import EXIT, ForkServer
from lightning_kd.comparison.study import Claim, Outcome
from lightning_kd.files.atomic import atomic_write

JOB, RESULT, PROGRESS, LOG, CURVES = "job.json", "result.json", "progress.json", "log.txt", "metrics.csv"


@dataclass(frozen=True)
class Job:
    """What the process of a unit is told.

    Args:
        kind: What the run is for, see ``Unit``.
        evaluation: Configuration of student and teacher, which are compared at the end.
        score: Name of the number that is the score, ``None`` for the first that the task has.
        split: Which data the score is of.
        threads: Threads that torch computes with.
        stop_after: Fraction of the epochs after which the run ends, ``None`` for all.
        path: Where the comparison finds modules, such as those beside the user's configuration.
    """

    kind: str
    evaluation: Mapping[str, Any]
    score: str | None
    split: str
    threads: int | None
    stop_after: float | None = None
    path: Sequence[str] = ()

    def write(self, folder: Path) -> None:
        """Write the job into the folder of its unit, and take away what is left of an earlier try."""
        folder.mkdir(parents=True, exist_ok=True)
        for name in (RESULT, PROGRESS, LOG, CURVES, EXIT):
            (folder / name).unlink(missing_ok=True)
        write_json(folder / JOB, asdict(self))

    @classmethod
    def read(cls, folder: Path) -> "Job":
        """Read the job of a folder."""
        return cls(**json.loads((folder / JOB).read_text()))


class Process(Protocol):
    """A process that was started."""

    def poll(self) -> int | None:
        """Return its exit code, the negative signal that ended it, or ``None`` while it runs."""

    def kill(self) -> None:
        """End it."""


class Running:
    """The process of a unit.

    Args:
        claim: The unit.
        process: Its process.
        folder: Folder of the unit.
    """

    def __init__(self, claim: Claim, process: Process, folder: Path) -> None:
        self.claim = claim
        self.folder = folder
        self.started = time.monotonic()
        self._process = process

    @property
    def done(self) -> float:
        """Which fraction of the run is done, 0..1."""
        try:
            return float(json.loads((self.folder / PROGRESS).read_text()))
        except (OSError, ValueError):
            return 0.0

    def poll(self) -> Outcome | None:
        """Return what came of the unit, ``None`` while it runs."""
        code = self._process.poll()
        if code is None:
            return None
        try:
            return Outcome(**json.loads((self.folder / RESULT).read_text()))
        except (OSError, ValueError, TypeError):
            return Outcome("failed", error=self._ended(code))

    def stop(self) -> None:
        """End the process."""
        self._process.kill()

    def _ended(self, code: int) -> str:
        how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
        hint = "; signal 9 is often the system's for want of memory" if code == -9 else ""
        path = self.folder / LOG
        lines = path.read_text(errors="replace").strip().splitlines() if path.exists() else []
        errors = [line for line in lines if "error:" in line.lower()] or lines[-1:]  # hints come after an error
        last = f" It said: {errors[-1][:300]}" if errors else ""
        return f"The process {how}{hint}.{last} See {path}."


class Starter:
    """Starts the processes of units.

    Each is a fresh one. On Linux, where no unit uses a GPU or several processes, they are forks of one process that has
    imported everything and run nothing: their state is that of a fresh one, and they start at once.

    Args:
        module: Name of the program, of this package; it gets the folder of a unit.
        threads: Threads that a process may use, ``None`` for as many as it likes.
        log: Where the program that forks says what goes wrong with it.
        forks: Whether processes may be forks.
    """

    def __init__(self, module: str, threads: int | None, log: Path, *, forks: bool) -> None:
        # -P: no file of the current folder hides a package
        self._command = [sys.executable, "-P", "-m", module]
        self._environment = {name: value for name, value in os.environ.items() if not name.startswith("PL_")}
        if threads is not None:
            self._environment |= {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        # a process finds this package as we have found it, also where it is not installed
        package = str(Path(lightning_kd.__file__).parents[1])
        before = self._environment.get("PYTHONPATH")
        self._environment["PYTHONPATH"] = os.pathsep.join(filter(None, (before, package)))
        self._log = log
        self._forks = forks and sys.platform == "linux"
        self._server: ForkServer | None = None

    def start(self, folder: Path) -> Process:
        """Start the process of a unit, with its job and its configuration in the folder."""
        if self._forks:
            if self._server is None or not self._server.lives:
                self._server = ForkServer(self._command, self._environment, self._log)
            return self._server.start(folder, folder / LOG)
        return _Fresh([*self._command, str(folder)], self._environment, folder / LOG)

    def close(self) -> None:
        """End what is there to start processes."""
        if self._server is not None:
            self._server.close()


class _Fresh:
    """A process of its own, which ends when the pipe to its input does, so that it never outlives us."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        with open(log, "wb") as file:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=dict(environment),
                process_group=0 if os.name == "posix" else None,  # Ctrl-C is for us to answer
            )

    def poll(self) -> int | None:
        code = self._process.poll()
        if code is not None:
            self._close()
        return code

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        self._close()

    def _close(self) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()


def write_json(path: Path, content: Any) -> None:
    """Write plain data whole or not at all."""
    with atomic_write(path) as file:
        file.write(json.dumps(content, indent=1).encode())
