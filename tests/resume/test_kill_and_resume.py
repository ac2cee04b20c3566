"""Runs that are killed with SIGKILL, some of them several times, and go on from the last checkpoint."""

import json
import random

import pytest
import torch

from tests.programs.killed_fit import PLACES
from tests.support import processes
from tests.support.scenarios import SCENARIOS, curve, differences

SEED = 20
DOORS = ["module", "callback"]
TWICE = ["kd and hint", "banks", "factor", "accumulated", "balanced", "born again", "mean teacher", "plain loader"]
"""What is trained by two processes too."""


def kills_of(name, generator, size):
    """Draw where a run is killed: as many places as fit into it, one after another."""
    last = 8  # of the last epoch's steps some are left
    places = [place for place in PLACES if name != "never validated" or place != "validation"]
    if "saved" in name:  # at the end of an epoch only, so that a kill throws back to the epoch's begin
        steps = [generator.randrange(0, last)]
    else:
        steps = sorted(generator.sample(range(last), generator.choice([1, 2])))
    chosen = [{"place": generator.choice(places), "step": step, "left": generator.randint(1, 9000)} for step in steps]
    if size > 1 and generator.random() < 0.5:
        chosen[0] |= {
            "place": generator.choice(["batch start", "backward", "batch end"]),
            "alone": generator.choice([0, 1]),
        }
    return chosen


def drawn():
    """Return the runs, with their kills: every scenario through a door, and some on two processes."""
    generator = random.Random(SEED)
    runs = [(name, DOORS[i % 2], 1) for i, name in enumerate(SCENARIOS)]
    runs += [(name, DOORS[i % 2], 2) for i, name in enumerate(TWICE)]
    runs += [(name, "several", size) for name in ("kd and hint", "banks") for size in (1, 2)]
    return {f"{n}, {door}, {size}": (n, door, size, kills_of(n, generator, size)) for n, door, size in runs}


RUNS = drawn()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Where every run has left what it has come to."""
    base = tmp_path_factory.mktemp("killed")
    keys = ("name", "door", "size", "kills")
    plan = [{"folder": str(base / str(i)), **dict(zip(keys, one, strict=True))} for i, one in enumerate(RUNS.values())]
    halves = [processes.module("programs.killed_fit", json.dumps(part)) for part in (plan[::2], plan[1::2])]
    processes.run(halves, limit=900)
    return {run: base / str(i) for i, run in enumerate(RUNS)}


def result(folder, rank):
    return torch.load(folder / f"{rank}.pt", weights_only=True)


@pytest.mark.slow
@pytest.mark.parametrize("run", RUNS)
def test_a_killed_run_goes_on_as_the_uninterrupted_one(run, folders):
    _, _, size, kills = RUNS[run]
    print(f"seed {SEED}: {kills}")
    folder = folders[run]
    ended = json.loads((folder / "ended.json").read_text())
    for kill, codes in zip(kills, ended["killed"], strict=False):
        assert codes[kill.get("alone") or 0] == -9, kill
        assert 0 not in codes
    assert ended["whole"] == [[0] * size]
    assert ended["killed"][-1] == [0] * size, (folder / "killed" / "log.0").read_text()[-3000:]
    found = [[result(folder / kind, rank) for rank in range(size)] for kind in ("killed", "whole")]
    assert not differences(*found)
    trained = [{k: v for k, v in one["weights"].items() if "running" not in k} for one in found[0]]
    assert not differences(trained[0], trained[-1])  # BatchNorm statistics are each process's own
    assert not differences(curve(folder / "killed" / "lines"), curve(folder / "whole" / "lines"))


def test_enough_is_killed():
    kills = [kill for *_, kills in RUNS.values() for kill in kills]
    assert len(kills) >= 30
    assert {kill["place"] for kill in kills} == set(PLACES)
    assert any("alone" in kill for kill in kills)
