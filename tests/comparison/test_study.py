"""Who does which unit: no unit twice, a dead worker's again, a living one's never."""

import signal
import sys
import textwrap
import traceback

import pytest

from lightning_kd.comparison import leases
from lightning_kd.comparison.storage import open_storage, without_passwords
from lightning_kd.comparison.study import Outcome, Study, Unit
from tests.comparison.conftest import BASE
from tests.comparison.programs import beside, kill, pid_in, wait_for

UNITS = [Unit("score", "student_alone", seed) for seed in (1, 2)]
HOLDER = """\
    import os, runpy, sys, time
    from pathlib import Path
    leases = runpy.run_path(sys.argv[1])["FileLeases"](Path(sys.argv[2]))  # without what the package imports
    leases.hold("other")
    if sys.argv[4] == "fork" and os.fork() == 0:
        Path(sys.argv[3] + ".child").write_text(str(os.getpid()))
        time.sleep(60)
    Path(sys.argv[3]).write_text(str(os.getpid()))
    time.sleep(60)
"""


def holder(locks, pid, how="alone"):
    """Return the command of another process that holds the lock of the worker "other"."""
    return [sys.executable, "-c", textwrap.dedent(HOLDER), leases.__file__, str(locks), str(pid), how]


def claimed_by(study, worker, unit):
    """Let another worker have claimed a unit."""
    import optuna

    attributes = {"unit": {"kind": unit.kind, "arm": unit.arm, "seed": unit.seed}, "worker": worker}
    made = optuna.trial.create_trial(state=optuna.trial.TrialState.RUNNING, user_attrs=attributes)
    study._storage.create_new_trial(study._id, made)


def test_a_living_workers_unit_is_left_to_it_and_a_killed_ones_is_done_again(comparison):
    study = comparison.study()
    claimed_by(study, "other", UNITS[0])
    with beside(holder(comparison.folder / "study.db.workers", comparison.folder / "pid")):
        pid = pid_in(comparison.folder / "pid")
        try:
            first = study.claim(UNITS)
            kill(pid, signal.SIGSTOP)  # as slow as can be
            none = study.claim(UNITS)
            running = [unit for unit, _ in study.running()]
        finally:
            kill(pid)
    again = study.claim(UNITS)
    assert (first.unit, none, running, again.unit) == (UNITS[1], None, UNITS, UNITS[0])
    assert study.claim(UNITS) is None
    study.close()


def test_what_comes_late_of_a_unit_that_was_taken_over_changes_nothing(comparison):
    study = comparison.study()
    claimed_by(study, "nobody", UNITS[0])
    claim = study.claim(UNITS)
    study.finish(claim, Outcome("ok", 0.5))
    late = type(claim)(0, UNITS[0])
    study.finish(late, Outcome("ok", 0.9))
    assert {unit: outcome.score for unit, outcome in study.outcomes().items()} == {UNITS[0]: 0.5}
    study.close()


def test_two_workers_of_one_study_do_a_unit_once(comparison):
    one, two = comparison.study(), comparison.study()
    assert [one.claim(UNITS).unit, two.claim(UNITS).unit] == UNITS
    one.close()
    two.close()


def test_a_lock_ends_with_its_process_also_where_a_child_lives_on(tmp_path):
    ours = leases.FileLeases(tmp_path)
    with beside(holder(tmp_path, tmp_path / "pid", "fork")):
        pid, child = pid_in(tmp_path / "pid"), pid_in(tmp_path / "pid.child")
        with ours.alone():
            before = ours.is_alive("other")
        kill(pid)
        try:
            with ours.alone():
                wait_for("end of the lock", lambda: not ours.is_alive("other"))
        finally:
            kill(child)
    assert before


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("no url", "no URL of a database"),
        ("mysql://ann:s3cret@db/studies", "'mysql', whose locks this package does not know"),
        ("postgresql://ann:s3cret@127.0.0.1:1/studies", "does not answer"),
        ("sqlite://", "names no file"),
    ],
)
def test_a_storage_that_cannot_be_used_is_refused_without_its_password(url, said, tmp_path):
    if url.startswith("postgresql"):
        pytest.importorskip("psycopg")
    with pytest.raises((ValueError, RuntimeError), match=said) as caught:
        open_storage(url, tmp_path, "study")
    assert "s3cret" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
    assert "s3cret" not in "".join(traceback.format_exception(caught.value))


def test_passwords_are_hidden_wherever_they_stand():
    assert without_passwords("a://u:p@h, b://u:q:r@h/d?password=x&y=1") == "a://u:***@h, b://u:***@h/d?password=***&y=1"
    assert without_passwords("examples/digits/hybrid.yaml: 3 @ 4") == "examples/digits/hybrid.yaml: 3 @ 4"


def test_a_study_tells_what_is_different(comparison):
    comparison.study().close()
    storage, locks = open_storage(None, comparison.folder, "study")
    other = {"base": {**BASE, "model": {**BASE["model"], "teacher": None, "task_weight": 1.0}}, "weights": "sized"}
    with pytest.raises(ValueError, match=r"base\.model\.task_weight was 0\.1 and is 1\.0, and 1 more differ"):
        Study(storage, locks, "study", other)
    locks.close()


def test_a_claim_whose_answer_was_lost_is_claimed_again(comparison, monkeypatch):
    """The database has the trial, but the connection broke before it said so."""
    from sqlalchemy.exc import OperationalError

    study = comparison.study()
    monkeypatch.setattr("lightning_kd.comparison.study._WAITS", (0.0,))
    whole = study._storage.get_trial

    def broken(trial_id):
        monkeypatch.setattr(study._storage, "get_trial", whole)
        raise OperationalError("SELECT", {}, Exception("the connection to postgresql://ann:s3cret@h/d is closed"))

    monkeypatch.setattr(study._storage, "get_trial", broken)
    assert study.claim(UNITS[:1]).unit == UNITS[0]
    assert study.claim(UNITS[:1]) is None
    study.close()


def test_a_database_that_does_not_answer_is_told_without_its_password(comparison, monkeypatch):
    from sqlalchemy.exc import OperationalError

    study = comparison.study()
    monkeypatch.setattr("lightning_kd.comparison.study._WAITS", (0.0,))

    def broken(*args, **kwargs):
        raise OperationalError("SELECT", {}, Exception("no answer from postgresql://ann:s3cret@h/d"))

    monkeypatch.setattr(study._storage, "get_all_trials", broken)
    with pytest.raises(RuntimeError, match=r"no answer from postgresql://ann:\*\*\*@h/d") as caught:
        study.outcomes()
    assert "s3cret" not in "".join(traceback.format_exception(caught.value)).replace('ann:s3cret@h/d")', "")
    study.close()
