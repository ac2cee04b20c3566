"""The table at the end of a run says what was measured, whatever the task."""

from types import SimpleNamespace
from typing import cast

import pytest
import torch
from torch import nn

from lightning_kd.engine.objective import Objective
from lightning_kd.fit.lines import Lines
from lightning_kd.fit.names import Names
from lightning_kd.fit.part_log import PartLog
from lightning_kd.fit.run import DistillationRun
from lightning_kd.losses import HintLoss, KDLoss
from lightning_kd.losses.naming import name_losses
from lightning_kd.report.summary import summary_table
from lightning_kd.schedules import LinearSchedule
from tests import support


def lines_of(results: dict[str, float], *, teacher: bool = True) -> list[str]:
    run = SimpleNamespace(
        results=results,
        student=nn.Linear(1, 1),
        teacher=SimpleNamespace(module=nn.Linear(3, 1)) if teacher else None,
        shares=lambda: [("embedding", 1.0, 0.25, 1.0)],
    )
    return summary_table(cast(DistillationRun, run)).splitlines()


SHARES = [
    "",
    "loss part           weight        mean       share",
    "embedding                1        0.25     100.0 %",
]


def test_classes() -> None:
    assert lines_of({"accuracy": 0.5, "teacher_accuracy": 0.75, "agreement": 0.625}) == [
        "                   teacher     student",
        "accuracy            75.0 %      50.0 %",
        "agreement                       62.5 %",
        "parameters               4           2   (2.0x fewer)",
        *SHARES,
    ]


def test_embeddings() -> None:
    assert lines_of({"cosine_to_teacher": 0.8125}) == [
        "                       teacher     student",
        "cosine_to_teacher                   0.8125",
        "parameters                   4           2   (2.0x fewer)",
        *SHARES,
    ]


def test_numbers() -> None:
    found = lines_of({"mse": 2.0, "teacher_mse": 1.5, "pearson": 0.5, "mse_to_teacher": 0.25})
    assert found[1:4] == [
        "mse                     1.5           2",
        "pearson                   -         0.5",
        "mse_to_teacher                     0.25",
    ]


def test_without_a_teacher_and_without_a_measure() -> None:
    assert lines_of({"mse": 2.0}, teacher=False)[:3] == [
        "                   student",
        "mse                      2",
        "parameters               2",
    ]
    assert lines_of({})[1:3] == ["accuracy                 -           -", "agreement                            -"]
    assert lines_of({"agreement": 0.5})[1:3] == [
        "accuracy                 -           -",
        "agreement                       50.0 %",
    ]


@pytest.mark.parametrize("split", [1, 2, 7])
def test_shares_are_those_of_the_weights_that_the_parts_had(split):
    log = PartLog()
    weights = [1.0, 0.75, 0.5, 0.25, 0.0, 0.0, 0.0]
    parts = [{"task": 1.0 + i, "kd": 3.0 - 0.5 * i} for i in range(7)]
    for i, (weight, values) in enumerate(zip(weights, parts, strict=True)):
        tensors = {name: torch.tensor(value) for name, value in values.items()}
        total = torch.tensor(values["task"] + weight * values["kd"])
        log.add(total, tensors, i, rows=2, factors={"task": 1.0, "kd": weight})
        if i % split == 0:  # a resumed run has the same sums
            state, log = log.state(), PartLog()
            log.restore(state)
    lines = Lines(Objective(name_losses([KDLoss()])), Names())
    lines.log = log
    found = {name: (weight * mean, share) for name, weight, mean, share in lines.shares()}
    whole = sum(one["task"] + weight * one["kd"] for weight, one in zip(weights, parts, strict=True)) / 7
    kd = sum(weight * one["kd"] for weight, one in zip(weights, parts, strict=True)) / 7
    assert found["kd"] == (pytest.approx(kd), pytest.approx(kd / whole))
    assert sum(share for _, share in found.values()) == pytest.approx(1.0)


def test_a_fit_shows_shares_that_make_up_the_loss():
    losses = [KDLoss(weight=LinearSchedule(1.0, 0.2, length=3, unit="step")), HintLoss("features", "features")]
    module = support.module(losses=losses, task_weight=LinearSchedule(0.1, 1.0, length=4, unit="step"))
    support.fit(module)
    assert sum(share for *_, share in module.run.shares()) == pytest.approx(1.0)


def test_shares_make_up_the_loss_where_a_part_is_a_mean_over_something_else():
    """The task is a mean over 1 and 3 labels, KD one over 2 rows: the means of the epoch are 4 and 3."""
    lines = Lines(Objective(name_losses([KDLoss()])), Names())
    for step, (task, kd, labels) in enumerate([(1.0, 2.0, 1.0), (5.0, 4.0, 3.0)]):
        values = {"task": torch.tensor(task), "kd": torch.tensor(kd)}
        lines.log.add(torch.tensor(task + kd), values, step, rows=2, counts={"task": torch.tensor(labels)})
    assert {name: share for name, *_, share in lines.shares()} == pytest.approx({"task": 4 / 7, "kd": 3 / 7})
