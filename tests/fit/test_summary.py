"""The table at the end of a run says what was measured, whatever the task."""

from types import SimpleNamespace
from typing import cast

from torch import nn

from lightning_kd.fit.run import DistillationRun
from lightning_kd.report.summary import summary_table


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
