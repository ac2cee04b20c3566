"""A student's own loss, and one of the user's, over tokens: two processes train as one, whatever their classes say."""

import os
from functools import partial

import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy
from torch.utils.data import DataLoader

from tests import support
from tests.engine.test_mean_of_loss import OverLabels, Scores, Student, over_next_labels, samples, tagged
from tests.support import processes

WAYS = {
    "own": (partial(Student, over_next_labels), "model", samples),
    "of the user's": (partial(Scores, None), OverLabels(), tagged),
}


def fitted(way, rank=None):
    make, task_loss, data = WAYS[way]
    student = make()
    module = support.module(
        student, teacher=None, losses=None, task_loss=task_loss, optimizer=partial(torch.optim.SGD, lr=0.5)
    )
    rows = data() if rank is None else [one for i, one in enumerate(data()) if i % 2 == rank]
    options = {} if rank is None else {"strategy": DDPStrategy(process_group_backend="gloo"), "devices": 2}
    trainer = support.trainer(max_epochs=1, limit_val_batches=0, use_distributed_sampler=False, **options)
    trainer.fit(module, DataLoader(rows, 4 if rank is None else 2), DataLoader(rows, 2))
    return torch.cat([weight.detach().flatten() for weight in student.parameters()])


def work(rank, folder):
    os.environ.update(LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1", MASTER_PORT=(folder / "port").read_text())
    torch.save({way: fitted(way, rank) for way in WAYS}, folder / str(rank))
    processes.leave_group()


@pytest.mark.slow
def test_the_weights_are_those_of_one_process(tmp_path):
    (tmp_path / "port").write_text(support.free_port())
    processes.spawned(work, tmp_path, limit=200)
    found = [torch.load(tmp_path / str(rank), weights_only=True) for rank in range(2)]
    for way in WAYS:
        alone = fitted(way)
        torch.testing.assert_close(found[0][way], alone, rtol=1e-5, atol=1e-6)
        assert torch.equal(found[0][way], found[1][way])
