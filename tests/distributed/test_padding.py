"""Losses that compare samples of processes whose batches are padded to other lengths."""

from pathlib import Path

import pytest
import torch

from lightning_kd.capture.layout import View
from lightning_kd.losses import PKTLoss, RKDLoss, SPLoss
from lightning_kd.losses.base import StepTensors
from tests.support import processes

LOSSES = (RKDLoss, SPLoss, PKTLoss)
LENGTHS = (6, 9)


def step(rank, longest):
    """Three samples of as many valid tokens as the process says, padded with numbers that must not count."""
    generator = torch.Generator().manual_seed(rank)
    valid = LENGTHS[rank]
    student, teacher = (torch.randn(3, valid, width, generator=generator).double() for width in (4, 5))
    mask = (torch.arange(longest) < valid).expand(3, longest)
    padding = longest - valid
    student, teacher = (torch.cat([x, x.new_full((3, padding, x.shape[2]), 7.0)], 1) for x in (student, teacher))
    return StepTensors(student_features={"a": student}, teacher_features={"b": teacher}, mask=mask)


def build(cls):
    loss = cls("a", "b")
    loss.views = {"student": {"a": View("NLC", text=True)}, "teacher": {"b": View("NLC", text=True)}}
    return loss


def work(rank: int, folder: Path) -> None:
    with processes.process_group(rank, folder / "init", limit=120):
        values = [build(cls).evaluate(step(rank, LENGTHS[rank] + rank)) for cls in LOSSES]
    torch.save(values, folder / str(rank))


def test_two_processes_with_other_padding_equal_one(tmp_path):
    processes.spawned(work, tmp_path, limit=120)
    both = [step(rank, 12) for rank in range(2)]
    together = StepTensors(
        student_features={"a": torch.cat([one.student_features["a"] for one in both])},
        teacher_features={"b": torch.cat([one.teacher_features["b"] for one in both])},
        mask=torch.cat([one.mask for one in both]),
    )
    expected = [build(cls).evaluate(together).item() for cls in LOSSES]
    for rank in range(2):
        found = [value.item() for value in torch.load(tmp_path / str(rank))]
        assert found == pytest.approx(expected, rel=1e-9)
