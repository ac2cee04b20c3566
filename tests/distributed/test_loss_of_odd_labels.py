"""``val/loss`` of two processes is the mean over all labels, also of an odd number of them."""

import os

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.strategies import DDPStrategy
from torch.utils.data import DataLoader, TensorDataset

from tests import support
from tests.support import processes


def rows():
    x, y = support.data(12).tensors
    y[0] = -100  # 11 labels
    return TensorDataset(x, y)


def work(rank, folder):
    os.environ.update(LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1", MASTER_PORT=(folder / "port").read_text())
    trainer = support.trainer(strategy=DDPStrategy(process_group_backend="gloo"), devices=2)
    trainer.validate(support.module(), DataLoader(rows(), batch_size=2), verbose=False)
    torch.save(trainer.callback_metrics["val/loss"], folder / str(rank))
    processes.leave_group()


@pytest.mark.slow
def test_the_mean_is_over_every_label(tmp_path):
    (tmp_path / "port").write_text(support.free_port())
    processes.spawned(work, tmp_path, limit=200)
    x, y = rows().tensors
    with torch.no_grad():
        expected = F.cross_entropy(support.student().eval()(x), y).double()
    for rank in range(2):
        found = torch.load(tmp_path / str(rank), weights_only=True)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
