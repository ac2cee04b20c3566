"""A process that has imported everything and run nothing, and forks for each unit of work: they start at once.

It ends when its input does, and takes its forks with it; a fork that it leaves behind ends by itself.
"""

import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

EXIT = "exit.json"
"""File in the folder of a unit: its exit code, or the negative signal that has ended it."""
_LOOK = 0.02


class ForkServer:
    """The process, seen from whoever starts it.

    Args:
        command: Starts a program that calls :func:`serve`.
        environment: Its environment.
        log: Where it says what goes wrong.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "ab") as file:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=dict(environment),
                process_group=0,  # Ctrl-C is for us to answer
            )

    @property
    def lives(self) -> bool:
        """Whether the process lives."""
        return self._process.poll() is None

    def start(self, folder: Path, log: Path) -> "Fork":
        """Fork for a folder; what the fork says goes into ``log``."""
        self.tell({"folder": str(folder), "log": str(log)})
        return Fork(self, folder)

    def tell(self, message: Mapping[str, str]) -> None:
        """Send a message, if the process lives."""
        if self._process.stdin is not None:
            with suppress(BrokenPipeError):  # the forks then have ended too, which they are asked for next
                self._process.stdin.write(json.dumps(message).encode() + b"\n")
                self._process.stdin.flush()

    def close(self) -> None:
        """End the process and its forks."""
        if self._process.stdin is not None:
            with suppress(BrokenPipeError):
                self._process.stdin.close()
        self._process.wait()


class Fork:
    """One fork, seen from whoever asked for it."""

    def __init__(self, server: ForkServer, folder: Path) -> None:
        self._server = server
        self._folder = folder

    def poll(self) -> int | None:
        """Return its exit code, or ``None`` while it runs."""
        lives = self._server.lives  # asked first: what the server wrote before its end is there then
        try:
            return int(json.loads((self._folder / EXIT).read_text()))
        except (OSError, ValueError):
            return None if lives else -signal.SIGKILL

    def kill(self) -> None:
        """End the fork."""
        self._server.tell({"kill": str(self._folder)})
        while self.poll() is None:
            time.sleep(_LOOK)


def serve(run: Callable[[Path], int]) -> None:
    """Fork for each folder that the input names, until the input ends.

    Args:
        run: What a fork does with its folder; returns its exit code.
    """
    forks: dict[int, Path] = {}
    rest = b""
    while True:
        if select.select([0], [], [], _LOOK if forks else None)[0]:
            read = os.read(0, 65536)
            if not read:
                break
            *lines, rest = (rest + read).split(b"\n")
            for line in lines:
                message = json.loads(line)
                if "kill" in message:
                    _kill(pid for pid, folder in forks.items() if folder == Path(message["kill"]))
                else:
                    folder = Path(message["folder"])
                    forks[_fork(run, folder, Path(message["log"]))] = folder
        for pid in list(forks):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                folder = forks.pop(pid)
                part = folder / f".{EXIT}.part"
                part.write_text(json.dumps(os.waitstatus_to_exitcode(status)))
                os.replace(part, folder / EXIT)
    _kill(forks)


def _fork(run: Callable[[Path], int], folder: Path, log: Path) -> int:
    parent = os.getpid()
    child = os.fork()
    if child:
        return child
    nothing, file = os.open(os.devnull, os.O_RDONLY), os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    os.dup2(nothing, 0)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.argv = [sys.argv[0], str(folder)]
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    sys.exit(run(folder))


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.2)
    end_now()


def end_now() -> None:
    """End this process from any of its threads, whatever it does."""
    os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))


def _kill(pids: Iterable[int]) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
