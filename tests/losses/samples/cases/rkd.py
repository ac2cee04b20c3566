"""The cases of relational distillation (RKD)."""

from math import sqrt

import torch
from torch import Tensor

from lightning_kd.functional import rkd_loss
from lightning_kd.losses import DistillationLoss, RKDLoss
from tests.losses.case import Case, Inputs, Mutant, Reference, random, rows

ONE = {"student": "a", "teacher": "b"}
TWO = {"student": ["a", "b"], "teacher": ["c", "d"]}
LINE, EVEN = rows([0.0], [1.0], [3.0]), rows([0.0], [1.0], [2.0])
CORNER = rows([0.0, 0.0], [1.0, 0.0], [0.0, 1.0])
# scaled by their means 2 and 4/3 the distances are (.5, 1.5, 1) and (.75, 1.5, .75): 2 * (1/4)^2 / 2, each twice
DISTANCES = 2 * (1 / 4) ** 2 / 9
# the cosines at the three corners are 0, r, r of the student with r = sqrt(1/2), and 1, -1, 1 of the teacher
ANGLES = 2 * (0.5 + (sqrt(0.5) + 1 - 0.5) + (1 - sqrt(0.5)) ** 2 / 2) / 27
# two equal samples count as 1e-6 apart: distances (1e-6, 2, 2) of mean m
M = (4 + 1e-6) / 3
EQUAL = ((1e-6 / M - 0.75) ** 2 + (2 / M - 1.5) ** 2 + (2 / M - 0.75) ** 2) / 9
RKD_REFERENCES = (
    Reference(ONE, Inputs(LINE, EVEN), 25 * DISTANCES),  # all angles agree
    Reference({**ONE, "distance_weight": 0.0}, Inputs(CORNER, EVEN), 50 * ANGLES),
    Reference({**ONE, "distance_weight": 0.0, "angle_weight": 3.0}, Inputs(CORNER.reshape(3, 2, 1), EVEN), 3 * ANGLES),
    Reference({**ONE, "angle_weight": 0.0}, Inputs(rows([0.0], [0.0], [2.0]), EVEN), 25 * EQUAL),
    Reference({**TWO, "angle_weight": 0.0}, Inputs([LINE, LINE], [EVEN, EVEN]), 50 * DISTANCES),
)
RKD_MUTANTS = (
    Mutant("squared distances", ".sqrt().fill_diagonal_(0.0)", ".fill_diagonal_(0.0)"),
    Mutant("the diagonal in the mean", "count = len(squares) * (len(squares) - 1)", "count = len(squares) ** 2"),
    Mutant("mean over tuples of different samples", "/ size**3", "/ (size * (size - 1) * (size - 2))"),
    Mutant("squares all the way", "torch.clamp(difference, -1.0, 1.0", "torch.clamp(difference, -9.0, 9.0"),
    Mutant("swap the factors", "(distance_weight, _distances), (angle_weight, _angles)", "(distance_weight, _angles),"),
    Mutant("forget the length of one way", ".mul_(inverse[corners].unsqueeze(1))", ""),
    Mutant(
        "detach the student",
        "rkd_loss(student, teacher, distance_weight=self",
        "rkd_loss(student.detach() + 0 * student, teacher, distance_weight=self",
    ),
)
BAD = ((random(4, 3, seed=1), random(2, 3, seed=2)), (random(4, seed=1), random(4, 3, seed=2)))


def rkd_by_function(component: DistillationLoss, inputs: Inputs) -> Tensor:
    assert isinstance(component, RKDLoss)
    factors = {"distance_weight": component.distance_weight, "angle_weight": component.angle_weight}
    pairs = zip(inputs.students, inputs.teachers, strict=True)
    return sum((rkd_loss(s, t, **factors) for s, t in pairs), torch.zeros((), dtype=torch.float64))


RKD = Case(
    "relation",
    RKDLoss,
    lambda: Inputs(random(6, 3, seed=1), random(6, 5, seed=2)),
    ONE,
    rkd_loss,
    rkd_by_function,
    RKD_REFERENCES,
    RKD_MUTANTS,
    bad_calls=BAD,
)

CASES = (RKD,)
