"""A mean over labels that are spread unevenly over two processes has the gradient of one process."""

import pytest
import torch
import torch.distributed as dist
from torch import nn

from lightning_kd.losses import DKDLoss, NKDLoss, TfKDLoss, WSLDLoss
from lightning_kd.losses.base import StepTensors
from lightning_kd.losses.logits.base import IGNORE_INDEX
from tests.support import processes

LIMIT = 60


def gradient(loss, rows):
    """The gradient of a linear student on some of 12 samples, of which the even ones and one odd one have a label."""
    generator = torch.Generator().manual_seed(0)
    x, guide = torch.randn(12, 5, generator=generator), torch.randn(12, 3, generator=generator)
    target = torch.arange(12) % 3
    target[3::2] = IGNORE_INDEX
    weight = nn.Parameter(torch.randn(5, 3, generator=generator))
    step = StepTensors(student_logits=x[rows] @ weight, teacher_logits=guide[rows], target=target[rows])
    value = loss.evaluate(step)
    value.backward()
    return value.detach(), weight.grad


LOSSES = {"dkd": [DKDLoss], "others": [TfKDLoss, NKDLoss, WSLDLoss]}


def work(rank, folder, name, split):
    made = [loss() for loss in LOSSES[name]]
    expected = [gradient(loss, slice(None)) for loss in made]  # before there is a group: one process
    parts = {"odd and even": (slice(0, None, 2), slice(1, None, 2)), "one is empty": (slice(None), slice(0, 0))}
    with processes.process_group(rank, folder / "meet", limit=LIMIT):
        for loss, wholes in zip(made, expected, strict=True):
            for value, whole in zip(gradient(loss, parts[split][rank]), wholes, strict=True):
                dist.all_reduce(value)
                torch.testing.assert_close(value / 2, whole)


@pytest.mark.parametrize("split", ["odd and even", "one is empty"])
@pytest.mark.parametrize("name", ["dkd", pytest.param("others", marks=pytest.mark.slow)])
def test_two_processes_equal_one_where_labels_are_spread_unevenly(name, split, tmp_path):
    processes.spawned(work, tmp_path, name, split, limit=LIMIT)
