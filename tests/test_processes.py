"""A hang of processes that tests start is a failure with a name, and nothing of them is left behind."""

import ast
import os
import re
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch

from tests.support import processes

STARTERS = {"subprocess", "multiprocessing", "torch.multiprocessing", "concurrent.futures", "asyncio", "pty"}
"""Modules that start processes."""
BY_HAND = {"fork", "forkpty", "posix_spawn", "posix_spawnp", "popen", "waitpid", "start_processes"}
BY_HAND |= {"init_process_group", "destroy_process_group"}
"""What only ``tests/processes.py`` calls."""


def by_hand(source):
    """Names in a source with which processes are started, or a process group is made or ended."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = getattr(node, "module", None)
            names = [alias.name if module is None else f"{module}.{alias.name}" for alias in node.names]
            found += [name for name in [*names, module] if name in STARTERS or str(name).split(".")[-1] in BY_HAND]
        elif isinstance(node, ast.Attribute) and node.attr in BY_HAND:
            found.append(ast.unparse(node))
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "os.system":  # which tests of safety only name
            found.append("os.system")
    return found


def test_no_test_starts_processes_or_ends_a_group_by_hand():
    paths = sorted(Path(__file__).parent.rglob("*.py"))
    found = {path.name: by_hand(path.read_text()) for path in paths if path != Path(processes.__file__)}
    assert {name: names for name, names in found.items() if names} == {}


@pytest.mark.parametrize(
    "source",
    [
        "import subprocess\nsubprocess.run(['ls'])",
        "from subprocess import check_call",
        "import torch.multiprocessing as mp",
        "from torch import multiprocessing as mp",
        "from concurrent.futures import ProcessPoolExecutor",
        "import os\nos.fork()",
        "import os\nos.system('ls')",
        "import torch\ntorch.distributed.destroy_process_group()",
        "from torch.distributed import destroy_process_group",
    ],
)
def test_every_way_by_hand_is_found(source):
    assert by_hand(source)


# What hangs


def never_arrives(rank, file):
    with processes.process_group(rank, file, limit=600):
        if rank == 1:
            time.sleep(600)


def test_a_rank_that_never_arrives_is_a_failure_with_its_name(tmp_path):
    works = [*(partial(never_arrives, rank, tmp_path / "file") for rank in (0, 1)), bool]  # the third does nothing
    start = time.monotonic()
    with pytest.raises(processes.HangError) as caught:
        processes.forked("three ranks", works, limit=5, folder=tmp_path)
    assert time.monotonic() - start < 60
    told, *rest = str(caught.value).splitlines()
    assert told == "three ranks: still running after 5 s: rank 0, rank 1"  # the third one has ended
    said = re.split(r"--- rank \d .*\n?", "\n".join(rest))[1:]
    assert "in barrier" in said[0]  # where the first one waits
    assert "in never_arrives" in said[1]
    assert "in barrier" not in said[1]
    assert not said[2]


def test_a_rank_waits_for_the_others_no_longer_than_the_limit_of_the_group(tmp_path):
    def waits():
        with processes.process_group(0, tmp_path / "file", limit=0.2):
            pass

    assert processes.forked("one of two ranks", [waits], limit=60, folder=tmp_path) == [1]
    assert "imed out" in (tmp_path / "log.0").read_text() or "imeout" in (tmp_path / "log.0").read_text()


def test_a_fork_computes_although_its_parent_has_used_several_threads():
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        layer, x = torch.nn.Conv2d(3, 64, 3), torch.randn(32, 3, 64, 64)
        layer(x)
        assert processes.forked("a convolution", [partial(layer, x)], limit=60) == [0]
    finally:
        torch.set_num_threads(threads)


def raises(rank, folder):
    (folder / str(rank)).write_text(str(os.getpid()))
    with processes.process_group(rank, folder / "file", limit=600):
        if rank == 1:
            raise ValueError("this rank is broken")
        time.sleep(600)


def test_a_rank_that_raises_ends_the_others(tmp_path):
    start = time.monotonic()
    with pytest.raises(AssertionError, match=r"^tests.test_processes.raises: rank 1 ended with 1\n") as caught:
        processes.spawned(raises, tmp_path, limit=300)
    assert time.monotonic() - start < 300
    assert "ValueError: this rank is broken" in str(caught.value)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "0").read_text()), 0)


def python(code, **options):
    (done,) = processes.run([[sys.executable, "-c", code]], **options)
    return done


def test_a_program_that_hangs_is_killed_with_what_it_has_started(tmp_path):
    code = (
        "import os, time\n"
        "if os.fork():\n"
        "    time.sleep(600)\n"
        "while True:\n"
        f"    open({str(tmp_path / 'beats')!r}, 'a').write('.')\n"
        "    time.sleep(0.01)"
    )
    with pytest.raises(
        processes.HangError, match=r"^python -c import os.*: still running after 2 s: the first process"
    ):
        python(code, limit=2)
    beats = (tmp_path / "beats").read_text()
    time.sleep(0.2)
    assert (tmp_path / "beats").read_text() == beats != ""


@pytest.mark.skipif(sys.platform != "linux", reason="finds the processes of a session in /proc")
def test_a_program_has_not_ended_before_the_last_of_its_processes():
    start = (
        "import os, subprocess, sys\n"
        "os.environ['LOCAL_RANK'] = '1'\n"
        "subprocess.Popen([sys.executable, '-c', 'import os, time; os.setpgid(0, 0); time.sleep({})'])"
    )
    begin = time.monotonic()
    assert python(start.format(1), limit=60).returncode == 0
    assert time.monotonic() - begin > 1
    with pytest.raises(processes.HangError, match=r": still running after 1 s: rank 1\n"):
        python(start.format(600), limit=1)


def test_a_program_that_fails_shows_what_it_said():
    code = "import sys; print('on one'); print('on two', file=sys.stderr); sys.exit(3)"
    with pytest.raises(AssertionError, match=r"the first process ended with 3\n(?s:.*)on one\n(?s:.*)on two"):
        python(code, limit=60)
    done = python(code, limit=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (3, "on one\n", "on two\n")
