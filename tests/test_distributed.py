"""Two processes train what one does."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests import support
from tests.distributed_fit import SCENARIOS

ROOT = Path(__file__).parent.parent


SCENARIOS_OF = {
    "module": [*SCENARIOS, *support.exported_losses()],
    "callback": ["default", "stage without the student", "born again"],
}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """What every process has after every scenario, by door, number of processes and scenario."""
    found = {}
    for door, scenarios in SCENARIOS_OF.items():
        for devices in (1, 2):
            folder = tmp_path_factory.mktemp(f"{door}{devices}")
            inherited = {name: value for name, value in os.environ.items() if not name.startswith("PL_")}  # a seed
            command = [sys.executable, "-m", "tests.distributed_fit", door, str(devices), str(folder), *scenarios]
            environment = {**inherited, "OMP_NUM_THREADS": "1"}
            done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
            assert done.returncode == 0, done.stderr[-3000:]
            for name in scenarios:
                paths = [folder / f"{name}.{rank}" for rank in range(devices)]
                found[door, devices, name] = [torch.load(path, weights_only=True) for path in paths]
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("door", "scenario"), [(door, name) for door, names in SCENARIOS_OF.items() for name in names])
def test_two_processes_equal_one(door, scenario, weights):
    (one,) = weights[door, 1, scenario]
    first, second = weights[door, 2, scenario]
    assert one["state"].keys() == first["state"].keys()
    # each process draws its own negatives, or normalises its own half: the two are equal, but not to one
    own = scenario == "CRDLoss" or one["normalises"]
    for name, expected in one["state"].items():
        if not own:
            torch.testing.assert_close(first["state"][name], expected, rtol=1e-6, atol=1e-6)
        assert torch.equal(first["state"][name], second["state"][name])
    assert all(torch.equal(value, second["teacher"][name]) for name, value in first["teacher"].items())
    assert first["tracked"] == one["own"]  # the teacher is not among what DDP synchronizes


@pytest.mark.slow
@pytest.mark.parametrize("scenario", ["CRDLoss", "balanced"])
def test_what_the_losses_keep_equal_is_not_sent(scenario, weights):
    assert [run["buffers"] for run in weights["module", 2, scenario]] == [0, 0]
    assert weights["module", 2, "mean teacher of a student that normalises"][0]["buffers"] > 0
