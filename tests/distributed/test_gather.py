"""Collecting a batch from two processes: the loss of the whole batch, and the gradient of one process with it."""

import torch

from lightning_kd.distributed.gather import gather
from tests.losses.case import random
from tests.support import processes

SAMPLES = random(5, 3, seed=1)
SPLIT = (0, 2, 5)  # processes with 2 and 3 samples


def relation(features):
    return (features @ features.T).square().mean()


def work(rank, file, results):
    with processes.process_group(rank, file, limit=120):
        mine = SAMPLES[SPLIT[rank] : SPLIT[rank + 1]].clone().requires_grad_()
        loss = relation(gather(mine))
        loss.backward()
        torch.save((loss.detach(), mine.grad), f"{results}/{rank}.pt")


def test_two_processes_see_the_whole_batch_and_average_to_its_gradient(tmp_path):
    processes.spawned(work, tmp_path / "init", tmp_path, limit=300)
    whole = SAMPLES.clone().requires_grad_()
    expected = relation(whole)
    expected.backward()
    for rank in range(2):
        loss, grad = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        torch.testing.assert_close(loss, expected.detach())
        torch.testing.assert_close(grad / 2, whole.grad[SPLIT[rank] : SPLIT[rank + 1]])  # DDP halves the sum


def test_one_process_alone_gets_its_own_tensor_back():
    assert gather(SAMPLES) is SAMPLES
