"""Comparisons as programs, from the first line to the table: killed, stopped, begun again, and by several workers."""

import csv
import json
import math
import os
import re
import signal
import sys
import warnings

import pytest
import yaml

from lightning_kd.commands.fit import run as fit
from lightning_kd.commands.programs.arm import attempt
from tests.comparison.programs import beside, kill, wait_for, workers
from tests.support import processes

pytestmark = pytest.mark.slow
FIT = """\
model:
  student: {class_path: DigitsConvNet, init_args: {width: 3}}
  teacher: {class_path: DigitsConvNet, init_args: {width: 4}}
  losses: [{class_path: KDLoss, init_args: {temperature: 5.0, weight: 0.3}}]
  task_loss: torch.nn.CrossEntropyLoss
  task_weight: 0.1
  optimizer: {class_path: torch.optim.SGD, init_args: {lr: 0.1, momentum: 0.9}}
data: {class_path: DigitsDataModule, init_args: {batch_size: 64}}
trainer: {max_epochs: 2, accelerator: cpu}
"""
ARMS = "response_based,contrastive_based"


def command(folder, output, *words):
    config = folder / "fit.yaml"
    config.write_text(FIT)
    options = ["--config", str(config), "--output", str(output), *words]
    return [sys.executable, "-m", "lightning_kd", "compare", *options]


def environment():
    return processes.inherited(OMP_NUM_THREADS="1", PYTHONPATH=str(processes.ROOT))


def compare(folder, output, *words, check=True):
    (done,) = processes.run(
        [command(folder, output, *words)], limit=240, check=check, cwd=folder, environment=environment()
    )
    return done


def scores(output):
    with open(output / "results.csv") as file:
        return {(row["arm"], int(row["seed"])): row["score"] for row in csv.DictReader(file)}


def equal(one, two):
    return one.keys() == two.keys() and all(
        math.isclose(float(one[key]), float(two[key]), rel_tol=0, abs_tol=1e-9) for key in one
    )


def test_it_ends_in_a_table_and_writes_into_its_folder_alone(whole):
    folder, printed = whole
    assert sorted(path.name for path in folder.iterdir()) == ["fit.yaml", "out"]
    written = {"arms", "report.html", "results.csv", "results.md", "study.db", "study.db.workers", "winner.yaml"}
    assert {path.name for path in (folder / "out").iterdir()} == written
    assert workers(folder / "out") == []
    assert printed.startswith("Compares 2 strategies and student_alone, 2 seeds each")
    assert re.search(r"^arm +score +difference +verdict", printed, re.MULTILINE)
    with open(folder / "out" / "results.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["status"] for row in rows] == ["ok"] * 6
    assert len({row["steps"] for row in rows}) == 1
    assert all(0 <= float(row["agreement"]) <= 1 and float(row["step_time"]) > 0 for row in rows)
    memory = [int(row["peak_memory"]) for row in rows if row["arm"] == "student_alone"]
    assert abs(memory[0] - memory[1]) < 2**24  # the arms between leave nothing


def test_the_winners_configuration_trains_to_its_number(whole, tmp_path, monkeypatch):
    folder, _ = whole
    monkeypatch.chdir(tmp_path)
    winner = folder / "out" / "winner.yaml"
    options = yaml.safe_load(winner.read_text())
    quiet = [f"--trainer.enable_{part}=false" for part in ("checkpointing", "progress_bar", "model_summary")]
    cli = fit(["fit", "--config", str(winner), "--trainer.logger=false", "--summary.enabled=false", *quiet])
    (name,) = re.findall(r"^# (\w+): the arm", winner.read_text(), re.MULTILINE)
    told = scores(folder / "out")[name, options["seed_everything"]]
    assert cli.model.run.results["accuracy"] == pytest.approx(float(told), rel=0, abs=1e-9)


def test_a_run_does_not_depend_on_what_its_process_has_done_before(whole, tmp_path):
    """This process has run other tests; the run of the comparison was a fork that had run nothing."""
    folder, _ = whole
    name = "contrastive_based-seed2"
    (tmp_path / name).mkdir()
    for file in ("job.json", "fit.yaml"):
        text = (folder / "out" / "arms" / name / file).read_text()
        (tmp_path / name / file).write_text(text.replace(str(folder / "out" / "arms"), str(tmp_path)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning warns that CSVLogger's folder holds files already
        assert attempt(tmp_path / name) == 0
    score = json.loads((tmp_path / name / "result.json").read_text())["score"]
    assert score == pytest.approx(float(scores(folder / "out")["contrastive_based", 2]), rel=0, abs=1e-9)


def test_killed_then_stopped_then_given_again_it_is_the_undisturbed_one(whole, tmp_path):
    """With the arms in another order and another number of runs at a time."""
    folder, _ = whole
    out = tmp_path / "out"
    arms = ",".join(reversed(ARMS.split(",")))
    words = ["--strategies", arms, "--seeds", "2", "--jobs", "1"]
    with beside(command(tmp_path, out, *words), cwd=tmp_path, environment=environment()):
        wait_for("score", lambda: (out / "results.csv").exists())
        (first,) = workers(out)
        kill(first)
    killed = scores(out)
    with beside(command(tmp_path, out, *words), cwd=tmp_path, environment=environment()) as done:
        wait_for("another score", lambda: len(scores(out)) > len(killed))
        (worker,) = [pid for pid in workers(out) if pid != first]  # whose file nobody has looked at yet
        os.killpg(os.getpgid(worker), signal.SIGINT)  # as a terminal does
    stopped = scores(out)
    assert done[0].returncode == 130
    assert "Stopped. The same command goes on where it was." in done[0].stderr
    assert "Traceback" not in done[0].stderr
    last = compare(tmp_path, out, *words[:-1], "3")
    assert 0 < len(killed) < len(stopped) < 6
    assert f"8 runs; {len(stopped) + 2} are done already." in last.stdout
    assert equal(scores(out), scores(folder / "out"))


def test_if_all_arms_fail_the_exit_code_says_so(tmp_path):
    done = compare(
        tmp_path,
        tmp_path / "out",
        "--seeds",
        "1",
        "--strategies",
        "response_based",
        "--model.optimizer.lr=1e30",
        check=False,
    )
    assert done.returncode == 1
    assert "no arm has a score" in done.stderr
    assert "not finite" in (tmp_path / "out" / "results.md").read_text()


def test_classes_beside_the_configuration_are_found_in_every_run(tmp_path):
    beside_it, elsewhere = tmp_path / "project", tmp_path / "elsewhere"
    for folder in (beside_it, elsewhere):
        folder.mkdir()
    net = "from lightning_kd.data import DigitsConvNet\n\n\nclass Net(DigitsConvNet):\n    pass\n"
    (beside_it / "own_parts.py").write_text(net)
    words = command(beside_it, tmp_path / "out", "--seeds=1", "--strategies=response_based", "--trainer.max_epochs=1")
    words += ["--model.student.class_path=own_parts.Net", "--model.student.init_args.width=3"]
    processes.run([words], limit=240, cwd=elsewhere, environment=environment())
    assert len(scores(tmp_path / "out")) == 2
