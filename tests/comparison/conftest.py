"""A comparison whose runs are numbers out of a table, so that what is tested is what goes on around them."""

import io
import json
from pathlib import Path

import pytest

from lightning_kd.comparison.plan import Plan
from lightning_kd.comparison.progress import Progress
from lightning_kd.comparison.storage import open_storage
from lightning_kd.comparison.study import Study
from lightning_kd.comparison.trial import RESULT
from lightning_kd.comparison.worker import Worker

BASE = {
    "model": {"losses": None, "task_weight": 0.1, "teacher": {"class_path": "torch.nn.Identity"}},
    "trainer": {"max_epochs": 8},
    "data": {"class_path": "lightning_kd.data.DigitsDataModule"},
}
SEEDS = (1, 2, 3)


def plain(unit):
    """A score that says which run it is of."""
    metrics = {"weight 0": 2.0} if unit["kind"] == "scale" else {"steps": 80.0}
    return {"status": "ok", "score": 0.5 + 0.01 * unit["seed"], "metrics": metrics}


class Ended:
    """A process that has ended."""

    def __init__(self, code=0):
        self.code = code

    def poll(self):
        return self.code

    def kill(self):
        pass


class Table:
    """Starts processes that have ended already, with what a function says of their unit."""

    def __init__(self, result=plain):
        self.result = result
        self.started = []

    def start(self, folder):
        job = json.loads((folder / "job.json").read_text())
        name = folder.name
        unit = {"kind": job["kind"], "arm": name.rpartition("-")[0], "seed": 0}
        if job["kind"] == "score":
            unit["seed"] = int(name.rpartition("-seed")[2])
        elif job["kind"] == "tune":
            unit["factor"] = float(name.partition("-weight")[2].partition("-")[0])
            unit["rung"] = int(name[-1])
            unit["arm"] = name.partition("-weight")[0]
        self.started.append(name)
        result = self.result(unit)
        if result is not None:
            content = {"score": None, "error": None, "scored": "accuracy", "higher_is_better": True, **result}
            (folder / RESULT).write_text(json.dumps(content))
        return Ended(0 if result is not None else -9)

    def close(self):
        pass


class Comparison:
    """Comparisons in one folder; each call is one command."""

    def __init__(self, folder):
        self.folder = folder
        self.said = ""

    def __call__(self, result=plain, *, arms=("student_alone", "response_based"), seeds=SEEDS, weights="sized", **more):
        """Run a comparison to its end; return its table and the names of the runs that were started."""
        base, jobs = more.pop("base", BASE), more.pop("jobs", 1)
        starter, stream = Table(result), io.StringIO()
        study = self.study(base, weights)
        try:
            if more.pop("retry_failed", False):
                study.retry_failed()
            worker = Worker(study, Plan(arms, seeds, weights), base, self.folder, starter, jobs=jobs)
            worker.progress = Progress(stream)
            table = worker.work()
        finally:
            study.close()
            self.said = stream.getvalue()
        return table, starter.started

    def study(self, base=BASE, weights="sized"):
        storage, leases = open_storage(None, self.folder, "study")
        return Study(storage, leases, "study", {"base": base, "weights": weights})


@pytest.fixture
def comparison(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("lightning_kd.comparison.worker._LOOK", 0.0)
    return Comparison(tmp_path)


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    """A comparison by the command that nothing disturbs: its folder and what it printed."""
    from tests.comparison.test_runs import ARMS, compare

    folder = tmp_path_factory.mktemp("whole")
    done = compare(folder, folder / "out", "--strategies", ARMS, "--seeds", "2")
    return folder, done.stdout
