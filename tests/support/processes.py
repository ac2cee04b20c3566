"""The one way in which tests start processes: with a limit, after which what still runs is named and killed.

``run`` starts programs, ``program`` one of the tests' own, ``spawned`` and ``forked`` functions. Code that joins a
process group itself does so in ``process_group``; where Lightning makes the group, ``leave_group`` ends it.
"""

import contextlib
import ctypes
import datetime
import faulthandler
import multiprocessing
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

ROOT = Path(__file__).parents[2]
TAIL = 20_000
"""Characters of an output that are shown."""


class HangError(Exception):
    """Processes did not end in time. It is no AssertionError, which is what a program that fails raises."""


@dataclass
class _Started:
    name: str
    pid: int
    poll: Callable[[], int | None]
    logs: list[Path] = field(default_factory=list)
    session: bool = False
    """Whether it leads a session, to which then all belong that it started, however they were grouped."""
    code: int | None = None

    def running(self) -> bool:
        """Whether the process runs, or another one of its session."""
        if self.code is None:
            self.code = self.poll()
        return self.code is None or bool(self.alive())

    def alive(self) -> dict[int, str]:
        """Names of the processes that run, by number."""
        own = {self.pid: self.name} if self.code is None else {}
        return _members(self.pid) | own if self.session else own

    def said(self) -> str:
        state = "is running" if self.code is None else f"ended with {self.code}"
        texts = [log.read_text(errors="replace")[-TAIL:] for log in self.logs if log.exists()]
        return "\n".join([f"--- {self.name} {state}; the end of its output:", *filter(None, texts)])


def run(
    commands: Sequence[Sequence[str]],
    *,
    limit: float,
    check: bool = True,
    cwd: Path = ROOT,
    environment: dict[str, str] | None = None,
) -> list[subprocess.CompletedProcess[str]]:
    """Run programs at the same time, each with all that it starts, and return what they said.

    Args:
        commands: The programs.
        limit: Seconds until what still runs is killed.
        check: Whether a program may not fail.
        cwd: Where they run.
        environment: Their environment; by default ours without a seed, and with one thread.
    """
    made = inherited(OMP_NUM_THREADS="1") if environment is None else environment
    made = {**made, "PYTHONFAULTHANDLER": "1"}  # at SIGABRT each process writes where it is
    done, started = [], []
    with tempfile.TemporaryDirectory() as folder:
        try:
            for number, command in enumerate(commands):
                logs = [Path(folder) / f"{number}.{stream}" for stream in ("out", "err")]
                with open(logs[0], "w") as out, open(logs[1], "w") as err:
                    popen = subprocess.Popen(
                        command,
                        cwd=cwd,
                        env=made,
                        stdin=subprocess.DEVNULL,
                        stdout=out,
                        stderr=err,
                        start_new_session=True,
                    )
                name = "the first process" if len(commands) == 1 else f"the first process of command {number + 1}"
                started.append(_Started(name, popen.pid, popen.poll, logs, session=True))
            shown = f"python {' '.join(commands[0][1:])}".partition("\n")[0][:200]
            _wait(shown, started, limit)
            if check:
                _check(shown, started)
        finally:
            _kill(started)
        for command, one in zip(commands, started, strict=True):
            texts = [log.read_text(errors="replace") for log in one.logs]
            done.append(subprocess.CompletedProcess(list(command), int(one.code or 0), *texts))
    return done


def program(name: str, *arguments: Any, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a program of the tests, see ``run``."""
    (done,) = run([module(name, *arguments)], **options)
    return done


def module(name: str, *arguments: Any) -> list[str]:
    """Return the command that runs a module of the tests."""
    return [sys.executable, "-m", f"tests.{name}", *map(str, arguments)]


def inherited(**changes: str) -> dict[str, str]:
    """Return our environment without what Lightning puts into it, such as a seed, and with changes."""
    return {**{name: value for name, value in os.environ.items() if not name.startswith("PL_")}, **changes}


def spawned(work: Callable[..., object], *arguments: Any, ranks: int = 2, limit: float) -> None:
    """Call ``work(rank, *arguments)`` in fresh processes; when one raises, the others are killed.

    Args:
        work: A function of a module, so that a fresh process finds it.
        arguments: What can be pickled.
        ranks: Number of processes.
        limit: Seconds until what still runs is killed, the start of Python and the imports included.
    """
    context = multiprocessing.get_context("spawn")  # whatever is the default: it has changed in Python 3.14
    started = []
    with tempfile.TemporaryDirectory() as folder:
        try:
            for rank in range(ranks):
                log = Path(folder) / str(rank)
                process = context.Process(target=_work, args=(os.setsid, partial(work, rank, *arguments), log))
                process.start()
                assert process.pid is not None
                poll = partial(getattr, process, "exitcode")
                started.append(_Started(f"rank {rank}", process.pid, poll, [log], session=True))
            name = f"{work.__module__}.{work.__qualname__}"
            _wait(name, started, limit, until_failure=True)
            _check(name, started)
        finally:
            _kill(started)


def forked(name: str, works: Sequence[Callable[[], object]], *, limit: float, folder: Path | None = None) -> list[int]:
    """Call functions in forks of this process, which are one process group; return the exit codes.

    Args:
        name: What a failure is called.
        works: One function for each process.
        limit: Seconds until what still runs is killed.
        folder: Where ``log.0`` and so on get the outputs; by default they go to the outputs of this process.
    """
    started: list[_Started] = []
    try:
        for rank, work in enumerate(works):
            log = None if folder is None else folder / f"log.{rank}"
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 on threads, which no work needs
                child = os.fork()
            if not child:
                torch.set_num_threads(1)  # OpenMP does not start its threads again in a fork, so two would hang
                _work(partial(os.setpgid, 0, started[0].pid if started else 0), work, log)
            started.append(_Started(f"rank {rank}", child, partial(_code, child), [log] if log else []))
            if rank == 0:
                os.setpgid(child, child)
        _wait(name, started, limit)
    finally:
        _kill(started)
    return [int(one.code or 0) for one in started]


@contextlib.contextmanager
def process_group(rank: int, file: Path, *, size: int = 2, limit: float) -> Iterator[None]:
    """Join a process group, and wait at the end until all have come there.

    Who raises does not wait for the others, which may never come: ``spawned`` ends them. The group is not ended, since
    ``spawned`` and ``forked`` end the process at once: see ``leave_group`` for what that spares.

    Args:
        rank: The place in the group.
        file: Where the processes meet.
        size: Number of processes.
        limit: Seconds that one process waits for another.
    """
    timeout = datetime.timedelta(seconds=limit)
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=size, timeout=timeout)
    yield
    dist.barrier()


def leave_group() -> None:
    """Wait for the other processes of the group, if there is one, and end it."""
    if dist.is_initialized():
        dist.barrier()
        # torch 2.6 waits in destroy_process_group for the group's threads and holds Python's lock meanwhile, which they
        # need to free the tensors of the last collective. So they get the time to do that before.
        time.sleep(0.1)
        dist.destroy_process_group()


def _wait(name: str, started: Sequence[_Started], limit: float, until_failure: bool = False) -> None:
    end = time.monotonic() + limit
    while [one for one in started if one.running()]:  # asks every one of them
        if until_failure and any(one.code for one in started):
            break
        if time.monotonic() > end:
            late = {pid: who for one in started for pid, who in one.alive().items()}
            told = f"{name}: still running after {limit:g} s: {', '.join(late.values())}"
            for pid in late:
                _abort(pid)
            raise HangError("\n".join([told, *(one.said() for one in started)]))
        time.sleep(0.02)


def _check(name: str, started: Sequence[_Started]) -> None:
    failed = ", ".join(f"{one.name} ended with {one.code}" for one in started if one.code)
    if failed:
        raise AssertionError("\n".join([f"{name}: {failed}", *(one.said() for one in started)]))


def _abort(pid: int) -> None:
    """Let a process write where it is, and end; without a core file."""
    with contextlib.suppress(OSError):
        if hasattr(resource, "prlimit"):
            resource.prlimit(pid, resource.RLIMIT_CORE, (0, 0))
        os.kill(pid, signal.SIGABRT)
        end = time.monotonic() + 2
        while time.monotonic() < end and not _ended(pid):
            time.sleep(0.02)


def _kill(started: Sequence[_Started]) -> None:
    """Kill what is left of processes, of their groups and sessions."""
    for one in started:
        for pid in one.alive():
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(OSError):
            os.killpg(one.pid, signal.SIGKILL)
    end = time.monotonic() + 10
    while time.monotonic() < end and any(one.running() for one in started):
        time.sleep(0.02)


def _members(session: int) -> dict[int, str]:
    """Names of a session's processes by number, where the system tells; Lightning gives its children their ranks."""
    found = {}
    for pid in sorted(int(path.name) for path in Path("/proc").glob("[0-9]*")):
        with contextlib.suppress(OSError):
            if os.getsid(pid) == session and not _ended(pid):
                rank = re.search(r"\bLOCAL_RANK=(\d+)", Path(f"/proc/{pid}/environ").read_text(errors="replace"))
                found[pid] = f"rank {rank[1]}" if rank else f"process {pid}"
    return found


def _ended(pid: int) -> bool:
    """Whether a process is gone, or has only its exit code left."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] in "ZX"
    except OSError:
        return True


def _code(child: int) -> int | None:
    pid, status = os.waitpid(child, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if pid else None


def _work(apart: Callable[[], object], work: Callable[[], object], log: Path | None) -> NoReturn:
    """Be a process that does something and ends, whatever happens."""
    code = 1
    try:
        apart()
        _begin(log)
        work()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)  # an ordinary end would also end a process group, which can hang, see ``leave_group``


def _begin(log: Path | None) -> None:
    """Make a process end with its parent, write to its log, and tell where it is at SIGABRT."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if log is not None:
        written = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for output in (1, 2):
            os.dup2(written, output)
        sys.stdout, sys.stderr = (os.fdopen(output, "w", buffering=1, closefd=False) for output in (1, 2))
    # a fit of Lightning 2.6 resets the handler of SIGABRT, and faulthandler sets no handler that it believes to be set
    faulthandler.disable()
    faulthandler.enable(2)


def leave_groups(mesh: DeviceMesh) -> None:
    """End the groups of a mesh, but for the one of all processes."""
    for group in mesh.get_all_groups():
        if group is not dist.group.WORLD:
            dist.destroy_process_group(group)
