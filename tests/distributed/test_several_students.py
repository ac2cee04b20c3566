"""In two processes several students learn what each would learn alone."""

import pytest
import torch

from tests.programs.several_fit import WIDTHS
from tests.support import processes
from tests.support.scenarios import differences


@pytest.mark.slow
def test_students_of_two_processes_learn_what_each_learns_alone(tmp_path):
    processes.program("programs.several_fit", tmp_path, limit=300)
    for rank in range(2):
        together = torch.load(tmp_path / f"small+tiny.{rank}", weights_only=True)
        for name in WIDTHS:
            alone = torch.load(tmp_path / f"{name}.{rank}", weights_only=True)
            assert not differences(together["weights"][name], alone["weights"][name])
            assert "train/kd" in alone["logged"]
            for logged, value in alone["logged"].items():
                assert together["logged"][logged.replace("/", f"/{name}/", 1)] == value, logged
    ranks = [torch.load(tmp_path / f"small+tiny.{rank}", weights_only=True) for rank in range(2)]
    assert not differences(*ranks)
