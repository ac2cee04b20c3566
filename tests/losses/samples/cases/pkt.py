"""The cases of probabilistic transfer (PKT)."""

from math import exp, log

import torch
from torch import Tensor

from lightning_kd.functional import mmd_loss, moment_matching_loss, pkt_loss
from lightning_kd.losses import DistillationLoss, PKTLoss
from tests.losses.case import Case, Inputs, Mutant, Reference, random, rows

ONE = {"student": "a", "teacher": "b"}
EXACT = {**ONE, "eps": 1e-12}  # what eps adds is beside the point of these numbers
TWO = {"student": ["a", "b"], "teacher": ["c", "d"], "eps": 1e-12}
STUDENT = rows([2.0, 0.0], [0.0, 3.0])  # cosine 0, kernel 1/2: each row (2/3, 1/3)
OPPOSITE = rows([1.0, 0.0], [-5.0, 0.0])  # cosine -1, kernel 0: each row (1, 0)
SIXTY = rows([1.0, 0.0], [1.0, 3.0**0.5])  # cosine 1/2, kernel 3/4: each row (4/7, 3/7)
FIRST = 2 * log(3 / 2) / 4
SECOND = 2 * (4 / 7 * log(6 / 7) + 3 / 7 * log(9 / 7)) / 4
REFERENCES = (
    Reference(EXACT, Inputs(STUDENT, OPPOSITE), FIRST),
    Reference(EXACT, Inputs(STUDENT.reshape(2, 2, 1, 1), SIXTY), SECOND),
    Reference(TWO, Inputs([STUDENT, STUDENT], [OPPOSITE, SIXTY]), FIRST + SECOND),
)
MUTANTS = (
    Mutant("batchmean", ".log()).mean()", ".log()).sum(dim=1).mean()"),
    Mutant(
        "swap the two",
        "(teacher_chances + eps) / (student_chances + eps)",
        "(student_chances + eps) / (teacher_chances + eps)",
    ),
    Mutant("forget the shift to 0..1", "(rows @ rows.T + 1.0) / 2.0", "rows @ rows.T"),
    Mutant("forget to normalise rows", "return kernel / kernel.sum(dim=1, keepdim=True)", "return kernel"),
    Mutant("forget the length", "(length + eps)", "(length * 0 + 1)"),
    Mutant("let the gradient reach the teacher", "teacher.detach()", "teacher"),
    Mutant(
        "detach the student",
        "pkt_loss(student, teacher, eps=self",
        "pkt_loss(student.detach() + 0 * student, teacher, eps=self",
    ),
)


def by_function(component: DistillationLoss, inputs: Inputs) -> Tensor:
    pairs = zip(inputs.students, inputs.teachers, strict=True)
    assert isinstance(component, PKTLoss)
    return sum((pkt_loss(s, t, eps=component.eps) for s, t in pairs), torch.zeros((), dtype=torch.float64))


PKT = Case(
    "probabilistic",
    PKTLoss,
    lambda: Inputs(random(4, 3, seed=1), random(4, 5, seed=2)),
    ONE,
    pkt_loss,
    by_function,
    REFERENCES,
    MUTANTS,
    bad_calls=((random(4, 3, seed=1), random(2, 3, seed=2)), (random(4, seed=1), random(4, 3, seed=2))),
    match_options={"eps": 1e-12},
)

MMD = {**ONE, "mode": "mmd"}
ZERO_ONE, ZERO_THREE = rows([0.0], [1.0]), rows([0.0], [3.0])


def discrepancy(variance: float) -> float:
    """Squared distances 0, 1 of the student, 0, 9 of the teacher, and 0, 9, 1, 4 between them."""
    one, nine, four = (exp(-square / (2 * variance)) for square in (1, 9, 4))
    return (2 + 2 * one) / 4 + (2 + 2 * nine) / 4 - 2 * (1 + nine + one + four) / 4


MMD_REFERENCES = (
    Reference({**MMD, "bandwidth": 1.0}, Inputs(ZERO_ONE, ZERO_THREE), discrepancy(1.0)),
    Reference({**MMD, "bandwidth": 2.0}, Inputs(ZERO_ONE, ZERO_THREE), discrepancy(4.0)),
    Reference(MMD, Inputs(ZERO_ONE.reshape(2, 1, 1), ZERO_THREE.reshape(2, 1, 1)), discrepancy(14 / 4)),
    # a projector W = 3 makes the student the teacher
    Reference(
        {**MMD, "bandwidth": 1.0},
        Inputs(rows([0.0, 0.0], [1.0, 0.0]), ZERO_THREE),
        0.0,
        {"projectors.0.linear.weight": rows([3.0, 1.0]), "projectors.0.linear.bias": torch.zeros(1).double()},
    ),
)
MMD_MUTANTS = (
    Mutant("one cross term", "own + other - 2 * cross)", "own + other - cross)"),
    Mutant("forget the teacher's own term", "own + other - 2 * cross)", "own - 2 * cross)"),
    Mutant("variance for deviation", "bandwidth**2", "bandwidth"),
    Mutant("forget the two", "squares / (-2 * variance)", "squares / -variance"),
    Mutant("let the gradient reach the teacher", "teacher.detach()", "teacher"),
    Mutant("detach the student", "mmd_loss(projector(student)", "mmd_loss(projector(student.detach() + 0 * student)"),
)
MOMENTS = {**ONE, "mode": "moments"}
MOMENTS_REFERENCES = (
    # means 1 and 3, variances 1 and 4
    Reference(MOMENTS, Inputs(rows([0.0], [2.0]), rows([1.0], [5.0])), 4.0 + 9.0),
    # means (1, 0) and (0, 0), covariances diag(1, 0) and 0
    Reference(MOMENTS, Inputs(rows([0.0, 0.0], [2.0, 0.0]), rows([0.0, 0.0], [0.0, 0.0])), 1 / 2 + 1 / 4),
    # wider than twice the batch: means differ by (1, -1, 0, 0, 0), covariances by diag(1, -1, 0, 0, 0)
    Reference(
        MOMENTS,
        Inputs(
            2 * torch.eye(5).double()[[4, 0]] * rows([0.0], [1.0]),
            2 * torch.eye(5).double()[[4, 1]] * rows([0.0], [1.0]),
        ),
        2 / 5 + 2 / 25,
    ),
    # one direction: variances 1 and 4, means 1 and 2
    Reference(
        MOMENTS,
        Inputs(rows([0.0] * 5, [2.0, 0.0, 0.0, 0.0, 0.0]), rows([0.0] * 5, [4.0, 0.0, 0.0, 0.0, 0.0])),
        1 / 5 + 9 / 25,
    ),
)
MOMENTS_MUTANTS = (
    Mutant("forget the means", "(means + squares", "(squares"),
    Mutant("sum over the covariances", "(size * width) ** 2", "size**2"),
    Mutant("forget to centre", "student - student.mean(dim=0), teacher - teacher.mean(dim=0)", "student, teacher"),
    Mutant("one cross term", "sum() - 2 * cross.square()", "sum() - cross.square()"),
    Mutant(
        "detach the student",
        "matching_loss(projector(student)",
        "matching_loss(projector(student.detach() + 0 * student)",
    ),
)


def modes_by_function(component: DistillationLoss, inputs: Inputs) -> Tensor:
    assert isinstance(component, PKTLoss)
    (projector,), (student,), (teacher,) = component.projectors, inputs.students, inputs.teachers
    if component.mode == "mmd":
        return mmd_loss(projector(student), teacher, bandwidth=component.bandwidth)
    return moment_matching_loss(projector(student), teacher)


UNEQUAL = (((8, 3, 2), (8, 5, 2)), ((8, 3), (8, 3, 2)))
DISCREPANCY = Case(
    "probabilistic-mmd",
    PKTLoss,
    lambda: Inputs(random(4, 3, seed=1), random(4, 3, seed=2)),
    {**MMD, "bandwidth": 1.5},
    mmd_loss,
    modes_by_function,
    MMD_REFERENCES,
    MMD_MUTANTS,
    bad_calls=(*PKT.bad_calls, (random(4, 3, seed=1), random(4, 5, seed=2))),
    bad_builds=UNEQUAL,
)
MATCHED = Case(
    "probabilistic-moments",
    PKTLoss,
    lambda: Inputs(random(4, 3, seed=1), random(4, 5, seed=2)),
    MOMENTS,
    moment_matching_loss,
    modes_by_function,
    MOMENTS_REFERENCES,
    MOMENTS_MUTANTS,
    bad_calls=(*PKT.bad_calls, (random(4, 3, seed=1), random(4, 5, seed=2))),
    bad_builds=UNEQUAL,
    extreme=False,  # at 1e4 the true gradient is 1e12, which float16 cannot hold
)

CASES = (PKT, DISCREPANCY, MATCHED)
