"""The cases of the relation family."""

from math import exp, sqrt

import torch
from torch import Tensor

from lightning_kd.functional import cc_loss, rkd_loss
from lightning_kd.losses import CCLoss, DistillationLoss, RKDLoss
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
    Mutant("squares all the way", "difference.clamp(-1.0, 1.0)", "difference.clamp(-9.0, 9.0)"),
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

WIDE, OPPOSITE = rows([2.0, 0.0], [0.0, 3.0]), rows([1.0, 0.0], [-5.0, 0.0])  # cosines 0 and -1
FIRST, SECOND = rows([1.0, 2.0], [3.0, 0.0]), rows([0.0, 1.0], [1.0, 1.0])
EMBEDDED = {**ONE, "variant": "repdistiller", "dim": 2}
AS_IT_IS = {
    f"{side}_embeddings.0.{name}": value
    for side in ("student", "teacher")
    for name, value in (("weight", torch.eye(2).double()), ("bias", torch.zeros(2).double()))
}
CC_REFERENCES = (
    # e^-.8 (1 + .8 c + .32 c^2) is 1 at c = 0 and .52 at c = -1, times e^-.8
    Reference(ONE, Inputs(WIDE, OPPOSITE), 2 * (0.48 * exp(-0.8)) ** 2 / 4),
    Reference({**ONE, "gamma": 1.0, "order": 1}, Inputs(WIDE, OPPOSITE), 2 * (2 * exp(-2.0)) ** 2 / 4),
    # products (5, 3, 3, 9) against (1, 1, 1, 2)
    Reference({**ONE, "kernel": "bilinear"}, Inputs(FIRST, SECOND.reshape(2, 2, 1, 1)), (16 + 4 + 4 + 49) / 4),
    # differences (1, 1), (2, 1): one pair of neighbours
    Reference(EMBEDDED, Inputs(FIRST, SECOND), 3.0, AS_IT_IS),
    # a third, (0, 4), of product 4 with the second: the mean of 3 and 4
    Reference(
        EMBEDDED, Inputs(torch.cat([FIRST, rows([0.0, 4.0])]), torch.cat([SECOND, rows([0.0, 0.0])])), 3.5, AS_IT_IS
    ),
    Reference({**TWO, "kernel": "bilinear"}, Inputs([FIRST, FIRST], [SECOND, SECOND]), 2 * 73 / 4),
)
CC_MUTANTS = (
    Mutant("forget the factor before the series", "math.exp(-2 * gamma) * series", "series"),
    Mutant("forget the factorial", "gamma / order", "gamma"),
    Mutant("forget the length", "products / (lengths.unsqueeze(1) * lengths)", "products"),
    Mutant(
        "the root of the sum of squares",
        "F.mse_loss(student_kernel, teacher_kernel)",
        "(student_kernel - teacher_kernel).norm().div(len(student) ** 2)",
    ),
    Mutant("every sample with itself", "(gap[:-1] * gap[1:])", "(gap * gap)"),
    Mutant("the sign of the difference", "upcast(teacher).flatten(1)).abs()", "upcast(teacher).flatten(1))"),
    Mutant("let the gradient reach the teacher", "(s, t.detach()) for s", "(s, t) for s"),
    Mutant("detach the student", '_correlation("CCLoss", s, t', '_correlation("CCLoss", s.detach() + 0 * s, t'),
)


def cc_by_function(component: DistillationLoss, inputs: Inputs) -> Tensor:
    assert isinstance(component, CCLoss)
    options = {name: getattr(component, name) for name in ("variant", "kernel", "gamma", "order")}
    students, teachers = inputs.students, inputs.teachers
    if component.variant == "repdistiller":
        students = [embed(s) for embed, s in zip(component.student_embeddings, students, strict=True)]
        teachers = [embed(t) for embed, t in zip(component.teacher_embeddings, teachers, strict=True)]
    pairs = zip(students, teachers, strict=True)
    return sum((cc_loss(s, t, **options) for s, t in pairs), torch.zeros((), dtype=torch.float64))


def cc(
    name: str,
    *,
    zero_at_match: bool = True,
    permute: bool = True,
    extreme: bool = True,
    **options: object,
) -> Case:
    return Case(
        name,
        CCLoss,
        lambda: Inputs(random(4, 3, seed=1), random(4, 5, seed=2)),
        {**ONE, **options},
        cc_loss,
        cc_by_function,
        CC_REFERENCES,
        CC_MUTANTS if not options else (),
        bad_calls=BAD,
        zero_at_match=zero_at_match,
        permutation_invariant=permute,
        extreme=extreme,
    )


CASES = (
    RKD,
    cc("correlation"),
    # at 1e4 the true gradient of this kernel is 1e12, which float16 cannot hold
    cc("correlation-bilinear", extreme=False, kernel="bilinear"),
    cc("correlation-neighbours", zero_at_match=False, permute=False, variant="repdistiller", dim=4),
)
