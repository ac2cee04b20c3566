"""Two processes count every row once, and the first one records its part of them."""

import json

import pytest

from lightning_kd.report.record import Record
from tests.support import processes

NAMES = {
    "val/flips": "negative_flips",
    "val/kl": "fidelity_kl",
    "val/ece": "calibration_error",
    "val/teacher_ece": "teacher_calibration_error",
    "val/both": "confidence_correlation",
}


@pytest.mark.slow
def test_metrics_and_record_of_two_processes(tmp_path):
    processes.program("programs.recorded_fit", tmp_path, limit=120)
    for rank in (0, 1):
        told = json.loads((tmp_path / f"{rank}.json").read_text())
        for name, key in NAMES.items():
            assert told["logged"][name] == pytest.approx(told["whole"][key], rel=1e-5), name
    record = Record.read(tmp_path / "run")
    assert record.facts["run"]["processes"] == 2
    assert record.facts["run"]["rows"] == 12
    assert record.facts["notes"] == {"gradients": "a backward pass of one part alone may need all processes"}
    assert "<h2>By class</h2>" in (tmp_path / "run" / "report.html").read_text()
