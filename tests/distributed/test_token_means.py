"""Means over valid tokens, and over labels of the task, that are spread unevenly over two processes."""

from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from lightning_kd.capture.layout import View
from lightning_kd.engine.task import of_all_labels, task_term
from lightning_kd.losses import ATLoss, EmbeddingLoss, HintLoss, PKDLoss, SRDLoss, VIDLoss
from lightning_kd.losses.base import StepTensors
from lightning_kd.projectors import IdentityProjector
from tests.support import processes

LOSSES = {
    "hint": lambda: HintLoss("a", "b", projector=IdentityProjector()),
    "vid": lambda: VIDLoss("a", "b"),
    "at": lambda: ATLoss("a", "b"),
    "embedding": lambda: EmbeddingLoss("a", "b"),
    "pkd": lambda: PKDLoss("a", "b"),
    "srd": lambda: SRDLoss("a", "b"),
}
GATHERED = {"pkd", "srd"}
"""Each process has the tokens of all, so that nothing is counted."""
TASKS = {
    "labels": lambda: nn.CrossEntropyLoss(),
    "weights": lambda: nn.CrossEntropyLoss(weight=torch.tensor([0.2, 1.0, 3.0])),
    "nll": lambda: nn.NLLLoss(ignore_index=1),
}
LIMIT = 90


def text(loss):
    torch.manual_seed(0)
    as_map = isinstance(loss, ATLoss)
    view = View("NLC", text=True, as_map=as_map, pooled=loss.masking == "mean")
    shape = (2, 4, 6, 1) if as_map else (2, 6, 4)
    loss.views = {"student": {"a": view}, "teacher": {"b": view}}
    loss.build({"a": shape}, {"b": shape})
    return loss


def gradient(loss, rows):
    generator = torch.Generator().manual_seed(1)
    student, teacher = (torch.randn(6, 5, 4, generator=generator) for _ in range(2))
    weight = nn.Parameter(torch.eye(4))
    mask = (torch.arange(5) < torch.tensor([5, 5, 4, 1, 1, 2])[:, None])[rows]
    step = StepTensors(student_features={"a": student[rows] @ weight}, teacher_features={"b": teacher[rows]}, mask=mask)
    value = loss.evaluate(step)
    value.backward()
    return value.detach(), weight.grad


def work(rank: int, folder: Path) -> None:
    made = {name: text(make()) for name, make in LOSSES.items()}
    expected = {name: gradient(loss, slice(None)) for name, loss in made.items()}
    with processes.process_group(rank, folder / "meet", limit=LIMIT):
        for cut in (2, 0):
            for name, loss in made.items():
                found = gradient(loss, (slice(0, cut), slice(cut, None))[rank])
                for value, whole in zip(found, expected[name], strict=True):
                    dist.all_reduce(value)
                    torch.testing.assert_close(value / 2, whole, msg=name)
                if name in GATHERED:
                    assert loss.counted is None
                    continue
                counts = [torch.zeros(()) for _ in range(2)]
                dist.all_gather(counts, loss.counted)
                assert counts == [torch.tensor(9.0)] * 2  # 18 valid tokens


def test_two_processes_equal_one_where_padding_is_spread_unevenly(tmp_path):
    processes.spawned(work, tmp_path, limit=LIMIT)


def task_gradient(loss, rows):
    generator = torch.Generator().manual_seed(1)
    x, target = torch.randn(8, 5, generator=generator)[rows], torch.tensor([0, 1, 2, -100, -100, 1, -100, 2])[rows]
    target = torch.where(target < 0, loss.ignore_index, target)
    weight = nn.Parameter(torch.randn(5, 3, generator=generator))
    value, _ = of_all_labels(task_term(loss, (x @ weight).log_softmax(1), target), loss, target)
    value.nan_to_num(0.0).backward()
    return value.detach().nan_to_num(0.0), weight.grad


def task_work(rank: int, folder: Path) -> None:
    expected = {name: task_gradient(make(), slice(None)) for name, make in TASKS.items()}
    with processes.process_group(rank, folder / "meet", limit=LIMIT):
        for cut in (3, 0):
            for name, make in TASKS.items():
                found = task_gradient(make(), (slice(0, cut), slice(cut, None))[rank])
                for value, whole in zip(found, expected[name], strict=True):
                    dist.all_reduce(value)
                    torch.testing.assert_close(value / 2, whole, msg=name)


def test_the_task_of_two_processes_equals_that_of_one(tmp_path):
    processes.spawned(task_work, tmp_path, limit=LIMIT)
