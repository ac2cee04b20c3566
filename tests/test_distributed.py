"""Two processes train what one does."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent


def fitted(door, devices, folder):
    path = folder / f"{door}{devices}.pt"
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith("PL_")
    }  # no other test's seed
    environment = {**inherited, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.distributed_fit", door, str(devices), str(path)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(f"{path}.{rank}", weights_only=True) for rank in range(devices)]


@pytest.mark.slow
@pytest.mark.parametrize("door", ["module", "callback"])
def test_two_processes_equal_one(door, tmp_path):
    (one,) = fitted(door, 1, tmp_path)
    first, second = fitted(door, 2, tmp_path)
    assert one["state"].keys() == first["state"].keys()
    for name, expected in one["state"].items():
        torch.testing.assert_close(first["state"][name], expected, rtol=1e-6, atol=1e-6)
        assert torch.equal(first["state"][name], second["state"][name])
    assert first["tracked"] == len(one["state"])  # the teacher is not among what DDP synchronizes
