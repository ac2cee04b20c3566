"""A study in a real PostgreSQL server, which the test starts where PostgreSQL is installed."""

import os
import shutil
import signal
import socket
import sys
import tempfile
import time
from pathlib import Path

import pytest

from lightning_kd.comparison.storage import open_storage
from lightning_kd.comparison.study import Outcome, Study, Unit
from tests.comparison.programs import beside, kill, pid_in, wait_for
from tests.comparison.test_runs import ARMS, FIT, environment, equal, scores
from tests.support import processes

pytestmark = pytest.mark.slow
PASSWORD = "s3cr3t-w0rd"
UNIT = Unit("score", "student_alone", 1)


def program(name):
    """Return the path of a program of PostgreSQL, ``None`` where it is not installed."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((str(path / name) for path in folders if (path / name).exists()), None) or shutil.which(name)


@pytest.fixture(scope="module")
def server():
    """The URL of a server with a password."""
    pytest.importorskip("psycopg")
    if program("initdb") is None or program("postgres") is None:
        pytest.skip("PostgreSQL is not installed")
    as_user = []
    folder = Path(tempfile.mkdtemp(prefix="postgres"))
    (folder / "password").write_text(PASSWORD)
    if os.geteuid() == 0:  # which the server refuses to be
        if shutil.which("setpriv") is None or shutil.which("su") is None:
            pytest.skip("there is no way to run PostgreSQL as another user than root")
        as_user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
        for path in (folder, folder / "password"):
            shutil.chown(path, "postgres", "postgres")
    data = folder / "data"
    options = ["-A", "scram-sha-256", "-U", "ann", f"--pwfile={folder / 'password'}", "--no-sync"]
    processes.run([[*as_user, program("initdb"), "-D", str(data), *options]], limit=120, cwd=folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [program("postgres"), "-D", str(data), "-p", str(port), "-k", str(folder), "-h", "127.0.0.1", "-F"]
    with beside([*as_user, *command], cwd=folder, limit=600):
        pid = pid_in(data / "postmaster.pid")
        try:
            wait_for("server", lambda: "ready" in (data / "postmaster.pid").read_text())
            yield f"postgresql://ann:{PASSWORD}@127.0.0.1:{port}/postgres"
        finally:
            kill(pid, signal.SIGINT)
    shutil.rmtree(folder)


def study(url, folder, name):
    storage, locks = open_storage(url, folder, name)
    return Study(storage, locks, name, {"base": 1})


HOLDER = """\
import os, sys, time
from pathlib import Path
from tests.comparison.test_postgres import UNIT, study
theirs = study(sys.argv[1], Path("."), "held")  # which holds the lock as long as it is there
assert theirs.claim([UNIT])
Path(sys.argv[2]).write_text(str(os.getpid()))
time.sleep(60)
"""


def test_the_server_frees_a_killed_workers_unit_and_no_slow_ones(server, tmp_path):
    ours = study(server, tmp_path, "held")
    words = [sys.executable, "-c", HOLDER, server, str(tmp_path / "pid")]
    with beside(words, environment=environment()):
        pid = pid_in(tmp_path / "pid")
        kill(pid, signal.SIGSTOP)  # as slow as can be
        while_slow = ours.claim([UNIT])
        kill(pid)
    claim = wait_for("unit to be free", lambda: ours.claim([UNIT]))
    assert while_slow is None
    ours.finish(claim, Outcome("ok", 0.5))
    assert ours.outcomes()[UNIT].score == 0.5
    ours.close()


def test_a_connection_that_the_server_ends_is_made_again(server, tmp_path):
    import sqlalchemy

    ours, other = study(server, tmp_path, "cut"), study(server, tmp_path, "cut")
    claim = ours.claim([UNIT])
    engine = sqlalchemy.create_engine(server.replace("postgresql", "postgresql+psycopg"))
    with engine.connect() as connection:
        end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
        connection.execute(sqlalchemy.text(f"{end} AND backend_type = 'client backend'"))
    engine.dispose()
    time.sleep(0.5)
    second = Unit("score", "student_alone", 2)
    assert ours.claim([UNIT, second]).unit == second  # which also takes the lock again
    assert other.claim([UNIT, second]) is None
    ours.finish(claim, Outcome("ok", 0.25))
    assert other.outcomes()[UNIT].score == 0.25
    ours.close()
    other.close()


def test_two_machines_share_a_study_and_one_is_killed(server, whole, tmp_path):
    """Each has a folder of its own; the one that lives writes what both have done, and no password."""
    folders = [tmp_path / name for name in ("one", "two")]
    words = ["--config", "fit.yaml", "--output", "out", "--strategies", ARMS, "--seeds", "2", "--jobs", "1"]
    commands = []
    for folder in folders:
        folder.mkdir()
        (folder / "fit.yaml").write_text(FIT)
        commands.append(
            [sys.executable, "-c", IN_FOLDER, str(folder), "lightning-kd", "compare", *words, "--storage", server]
        )
    with beside(*commands, environment=environment()) as done:
        wait_for("score of each", lambda: all((folder / "out" / "results.csv").exists() for folder in folders))
        kill(pid_in(folders[0] / "pid"))
    assert [one.returncode for one in done] == [-signal.SIGKILL, 0]
    found = scores(folders[1] / "out")
    assert equal(found, scores(whole[0] / "out"))
    said = "".join(one.stdout + one.stderr for one in done)
    assert PASSWORD not in said
    written = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    assert len(written) > 20
    assert [path for path in written if PASSWORD.encode() in path.read_bytes()] == []


IN_FOLDER = """\
import os, sys
from pathlib import Path
os.chdir(sys.argv[1])
Path("pid").write_text(str(os.getpid()))
sys.argv = sys.argv[2:]
from lightning_kd.commands.main import main
main()
"""


def test_a_wrong_password_is_told_without_it(server, tmp_path):
    wrong = server.replace(PASSWORD, "wr0ng-w0rd")
    (tmp_path / "fit.yaml").write_text(FIT)
    words = ["--config", "fit.yaml", "--output", "out", "--storage", wrong]
    command = [sys.executable, "-m", "lightning_kd", "compare", *words]
    (done,) = processes.run([command], limit=120, check=False, cwd=tmp_path, environment=environment())
    assert done.returncode == 2
    assert "The storage does not answer" in done.stderr
    assert "wr0ng-w0rd" not in done.stdout + done.stderr
    assert len(done.stderr.splitlines()) < 12
