"""Attention of texts that are spread unevenly over two processes has the loss and gradient of one process."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

from lightning_kd.losses import AttentionMatrixLoss, QKVRelationLoss
from lightning_kd.losses.base import StepTensors
from tests.support import processes

NAMES = ("q", "k", "v")
QKV = {"relation_heads": 2, "relations": {"QK": 1.0, "VV": 0.5}}
LOSSES = {
    **{kind: lambda kind=kind: AttentionMatrixLoss("a", "b", kind=kind) for kind in ("scores", "scores_kl")},
    "scores of sentences": lambda: AttentionMatrixLoss("a", "b", reduction="sentences"),
    "relations": lambda: QKVRelationLoss(NAMES, NAMES, **QKV, reduction="tokens"),
    "relations of sentences": lambda: QKVRelationLoss(NAMES, NAMES, **QKV),
}
LENGTHS = torch.tensor([5, 5, 4, 1, 1, 2])
LIMIT = 60


def gradient(loss, rows, *, masked):
    generator = torch.Generator().manual_seed(1)
    shape, names = ((6, 2, 5, 5), None) if isinstance(loss, AttentionMatrixLoss) else ((6, 5, 4), NAMES)
    weight = nn.Parameter(torch.eye(shape[-1]))
    ours = {name: torch.randn(shape, generator=generator)[rows] @ weight for name in names or "a"}
    theirs = {name: torch.randn(shape, generator=generator)[rows] for name in names or "b"}
    mask = (torch.arange(5) < LENGTHS[:, None])[rows] if masked else None
    value = loss.evaluate(StepTensors(student_features=ours, teacher_features=theirs, mask=mask))
    value.backward()
    return value.detach(), weight.grad


def work(rank: int, folder: Path) -> None:
    cases = [(name, make(), masked) for name, make in LOSSES.items() for masked in (True, False)]
    expected = [gradient(loss, slice(None), masked=masked) for _, loss, masked in cases]  # one process, for no group
    with processes.process_group(rank, folder / "meet", limit=LIMIT):
        for cut in (2, 0):  # long texts and short ones, and a process without any
            for (name, loss, masked), whole in zip(cases, expected, strict=True):
                rows = (slice(0, cut), slice(cut, None))[rank]
                for value, right in zip(gradient(loss, rows, masked=masked), whole, strict=True):
                    found = torch.zeros_like(right) if value is None else value
                    dist.all_reduce(found)
                    torch.testing.assert_close(found / 2, right, rtol=1e-6, atol=1e-6, msg=f"{name} {masked} {cut}")


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path: Path) -> None:
    processes.spawned(work, tmp_path, limit=LIMIT)
