"""Programs that a test kills: they run beside the test, which waits until they say where they are."""

import os
import signal
import threading
import time
from contextlib import contextmanager

from tests.support import processes

LIMIT = 240
"""Seconds until a program that does not do what is waited for is a failure."""


@contextmanager
def beside(*commands, limit=LIMIT, **options):
    """Run programs while the block runs, and wait for their end; yields the list that gets what they said."""
    done = []

    def run():
        done.extend(processes.run(list(commands), limit=limit, check=False, **options))

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield done
    finally:
        thread.join()


def wait_for(what, found):
    """Wait until something is there, and return it."""
    end = time.monotonic() + LIMIT / 2
    while not (there := found()):
        assert time.monotonic() < end, f"there is no {what}"
        time.sleep(0.02)
    return there


def pid_in(path):
    """Return the number of a process that a file holds, once it is there."""
    return int(wait_for(f"number in {path}", lambda: path.exists() and path.read_text()).split()[0])


def workers(output):
    """Return the numbers of the workers of a comparison that live."""
    return [int(path.name.split("-")[-2]) for path in (output / "study.db.workers").glob("*-*-*.lock")]


def kill(pid, number=signal.SIGKILL):
    """Send a signal."""
    os.kill(pid, number)
