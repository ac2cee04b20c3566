"""What each of two processes remembers for itself is in the checkpoint, and resumes exactly."""

import os

import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy
from torch.utils.data import DataLoader

from lightning_kd.data import Indexed
from lightning_kd.losses import CRDLoss
from tests import support
from tests.support import processes


def fitted(folder, **options):
    loss = CRDLoss("features", "features", dim=3, negatives=5, gather=False)
    torch.manual_seed(5)
    made = support.module(losses=[loss])
    rows = Indexed(support.data(count=32))
    support.fit(
        made,
        train=DataLoader(rows, batch_size=4, shuffle=True),
        devices=2,
        strategy=DDPStrategy(process_group_backend="gloo"),
        default_root_dir=folder,
        limit_val_batches=0,
        **options,
    )
    return {name: buffer.clone() for name, buffer in loss.named_buffers()}, made.state_dict()


def work(rank, folder):
    os.environ.update(LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1", MASTER_PORT=(folder / "port").read_text())
    saver = support.SaveEveryStep(folder)
    whole, _ = fitted(folder, max_epochs=2, callbacks=[saver])
    resumed, _ = fitted(folder, max_epochs=2, ckpt_path=folder / "4.ckpt", seed=99)
    torch.save((whole, resumed), folder / str(rank))
    processes.leave_group()


@pytest.mark.slow
def test_banks_of_their_own_resume_in_every_process(tmp_path):
    (tmp_path / "port").write_text(support.free_port())
    processes.spawned(work, tmp_path, limit=300)
    ranks = [torch.load(tmp_path / str(rank), weights_only=True) for rank in range(2)]
    for whole, resumed in ranks:
        assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    (one, _), (other, _) = ranks
    assert not torch.equal(one["student_bank"], other["student_bank"])
