"""In two processes, steps in which no loss of the teacher has a weight leave its parameters out, and nobody waits."""

import os

import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy

from lightning_kd.losses import HintLoss
from lightning_kd.schedules import StepSchedule
from tests import support
from tests.support import processes


def work(rank, folder):
    os.environ.update(LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1", MASTER_PORT=(folder / "port").read_text())
    net = support.student()
    weight = StepSchedule([1.0, 0.0, 1.0], [2, 4], unit="step")
    made = support.module(net, losses=[HintLoss("features", "features", weight=weight)])
    strategy = DDPStrategy(process_group_backend="gloo")
    support.fit(made, train=support.loader(batch_size=2), strategy=strategy, devices=2, limit_val_batches=0)
    torch.save({**net.state_dict(), **made.losses.state_dict()}, folder / str(rank))
    processes.leave_group()


@pytest.mark.slow
def test_two_processes_leave_the_teacher_out_together(tmp_path):
    (tmp_path / "port").write_text(support.free_port())
    processes.spawned(work, tmp_path, limit=200)
    one, other = (torch.load(tmp_path / str(rank), weights_only=True) for rank in range(2))
    for name, value in one.items():
        assert "running" in name or torch.equal(value, other[name]), name
