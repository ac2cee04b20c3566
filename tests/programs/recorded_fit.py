"""Fit on two processes with a record and its page; write the metrics of both processes, and those of all rows.

python -m tests.programs.recorded_fit FOLDER
"""

import json
import os
import sys
from contextlib import suppress
from pathlib import Path

import torch
from lightning.pytorch.strategies import DDPStrategy

from lightning_kd.metrics import CalibrationError, ConfidenceCorrelation, FidelityKL, NegativeFlips, compare_outputs
from lightning_kd.report import RecordRun
from tests import support
from tests.support import processes

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    given = {"flips": NegativeFlips(), "kl": FidelityKL(), "ece": CalibrationError(), "both": ConfidenceCorrelation()}
    made = support.module(metrics=given)
    strategy = DDPStrategy(process_group_backend="gloo")
    trainer = support.fit(made, callbacks=[RecordRun(folder / "run", page=True)], devices=2, strategy=strategy)
    logged = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
    made.student.eval()
    x, y = support.data(24).tensors
    with torch.no_grad():
        whole = compare_outputs(made.student(x), made.run.teacher.module(x), y)
    rank = os.environ.get("LOCAL_RANK", "0")
    (folder / f"{rank}.json").write_text(json.dumps({"logged": logged, "whole": whole}))
    with suppress(ValueError):  # the Trainer may have ended the group
        processes.leave_group()
