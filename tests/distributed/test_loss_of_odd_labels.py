"""Losses of two processes are means over all labels and rows, also where they are spread unevenly."""

import os
from contextlib import nullcontext
from functools import partial

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from lightning.pytorch.strategies import DDPStrategy
from torch.utils.data import DataLoader, Sampler, TensorDataset

from lightning_kd.losses import KDLoss
from tests import support
from tests.programs.distributed_fit import Plain
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


class Buckets(Sampler):
    """Gives one process five rows of each six, and the other the sixth, as a sampler of buckets may."""

    def __len__(self):
        return 2

    def __iter__(self):
        first = not dist.is_initialized() or dist.get_rank() == 0
        whole = not dist.is_initialized()
        for begin in (0, 6):
            batch = list(range(begin, begin + 6))
            yield batch if whole else batch[:5] if first else batch[5:]


def fitted(**options):
    """The means of an epoch in which no weight changes, over rows of which some have no label."""
    student = support.seeded(partial(Plain, 3), 3)  # without batch statistics, which are of one process
    module = support.module(student, losses=[KDLoss(weight=0.5)], optimizer=partial(torch.optim.SGD, lr=0.0))
    options = {"max_epochs": 1, "limit_val_batches": 0, "use_distributed_sampler": False} | options
    trainer = support.trainer(**options)
    trainer.fit(module, DataLoader(rows(), batch_sampler=Buckets()), support.loader())
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


def fit_apart(rank, folder):
    os.environ.update(LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1", MASTER_PORT=(folder / "port").read_text())
    with pytest.warns(UserWarning, match="unequal numbers of rows") if rank == 0 else nullcontext():
        found = fitted(strategy=DDPStrategy(process_group_backend="gloo"), devices=2)
    torch.save(found, folder / str(rank))
    processes.leave_group()


@pytest.mark.slow
def test_the_loss_of_an_epoch_is_the_sum_of_its_weighted_parts_in_any_number_of_processes(tmp_path):
    (tmp_path / "port").write_text(support.free_port())
    processes.spawned(fit_apart, tmp_path, limit=200)
    alone = fitted()
    for found in (alone, *(torch.load(tmp_path / str(rank), weights_only=True) for rank in range(2))):
        assert found["train/loss"] == pytest.approx(found["train/task"] + 0.5 * found["train/kd"], rel=1e-6)
        assert found == pytest.approx(alone, rel=1e-5)
