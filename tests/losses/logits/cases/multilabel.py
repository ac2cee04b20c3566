"""The cases of KD of labels that do not exclude one another."""

import math

from torch import Tensor

from lightning_kd.functional import multi_label_kd_loss
from lightning_kd.losses import DistillationLoss, MultiLabelKDLoss
from tests.losses.case import Case, Inputs, Mutant, Reference, random, rows

LN3 = math.log(3.0)
# Student 1/2, teacher 3/4: 3/4 ln(3/2) + 1/4 ln(1/2).
QUARTERS = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
REFERENCES = (
    # Two samples of two labels; one of the four differs: half of it.
    Reference({}, Inputs(rows([0.0, 1.0], [2.0, 3.0]), rows([LN3, 1.0], [2.0, 3.0])), QUARTERS / 2),
    # The same with labels averaged, and at T = 2 from twice the logits: 4 / 4.
    Reference(
        {"reduction": "mean", "temperature": 2.0},
        Inputs(rows([0.0, 1.0], [2.0, 3.0]), rows([2 * LN3, 1.0], [2.0, 3.0])),
        QUARTERS,
    ),
    # Student 3/4, teacher 1/2: 1/2 ln(2/3) + 1/2 ln 2, at one of three positions.
    Reference(
        {},
        Inputs(rows([LN3, 0.0, 0.0]).reshape(1, 1, 1, 3), rows([0.0, 0.0, 0.0]).reshape(1, 1, 1, 3)),
        0.5 * math.log(4.0 / 3.0) / 3,
    ),
)
MUTANTS = (
    Mutant("drop T^2", " * temperature**2", ""),
    Mutant("swap the two", "(F.logsigmoid(teacher) - F.logsigmoid(student))", "(F.logsigmoid(student) - 0)"),
    Mutant("forget the no", "yes + no", "yes"),
    Mutant("average where the labels are added", 'if reduction == "sum"', "if False"),
    Mutant("softmax across labels", "teacher.sigmoid() *", "teacher.softmax(1) *"),
    Mutant("labels on the last axis", "divergence.sum(dim=1)", "divergence.sum(dim=-1)"),
)


def by_function(component: DistillationLoss, inputs: Inputs) -> Tensor:
    assert isinstance(component, MultiLabelKDLoss)
    return multi_label_kd_loss(*inputs.args, temperature=component.temperature, reduction=component.reduction)  # type: ignore[arg-type]


CASES = (
    Case(
        "multi-label-kd",
        MultiLabelKDLoss,
        lambda: Inputs(random(4, 5, seed=1), random(4, 5, seed=2)),
        {"temperature": 2.0},
        multi_label_kd_loss,
        by_function,
        REFERENCES,
        MUTANTS,
        bad_calls=(
            (random(4, 5, seed=1), random(4, 7, seed=2)),
            (random(4, 3, 5, seed=1), random(4, 3, 5, seed=2)),
        ),
        bad_builds=(((8, 10), (8, 11)), ((8, 10, 4, 4), (8, 10, 8, 8)), ((8, 3, 10), (8, 3, 10))),
    ),
)
