"""The cases of similarity-preserving distillation (SP)."""

import torch
from torch import Tensor

from lightning_kd.functional import similarity_preserving_loss
from lightning_kd.losses import DistillationLoss, SPLoss
from tests.losses.case import Case, Inputs, Mutant, Reference, random, rows

ONE = {"student": "a", "teacher": "b"}
TWO = {"student": ["a", "b"], "teacher": ["c", "d"]}
STUDENT, TEACHER = rows([3.0, 4.0], [0.0, 5.0]), rows([1.0, 0.0], [0.0, -2.0])
# G of the student is ((25, 20), (20, 25)) with rows of length sqrt(1025), of the teacher ((1, 0), (0, 4)), so the unit
# matrix once normalised; both rows differ alike, by 25 / r - 1 and 20 / r.
VALUE = 2 * ((25 / 1025**0.5 - 1) ** 2 + (20 / 1025**0.5) ** 2) / 4
REFERENCES = (
    Reference(ONE, Inputs(STUDENT, TEACHER), VALUE),
    # maps are flattened: the same numbers as 1 x 2 positions
    Reference(ONE, Inputs(STUDENT.reshape(2, 1, 1, 2), TEACHER.reshape(2, 2, 1, 1)), VALUE),
    # two pairs are added
    Reference(TWO, Inputs([STUDENT, STUDENT], [TEACHER, TEACHER]), 2 * VALUE),
)

MUTANTS = (
    Mutant("forget to normalise", "unit(products, dim=1)", "products"),
    Mutant(
        "normalise by the sum",
        "unit(products, dim=1)",
        "F.normalize(products, p=1.0, dim=1)",
    ),
    Mutant("normalise the samples", "unit(products, dim=1)", "unit(rows, 1) @ unit(rows, 1).T"),
    Mutant("divide by the batch once", "F.mse_loss(_sim", "student.shape[0] * F.mse_loss(_sim"),
    Mutant("centre the features", "features.flatten(1)", "features.flatten(1) - features.flatten(1).mean(0)"),
    Mutant("let the gradient reach the teacher", "teacher.detach()", "teacher"),
    Mutant(
        "detach the student",
        "return similarity_preserving_loss(student",
        "return similarity_preserving_loss(student.detach() + 0 * student",
    ),
)


def by_function(component: DistillationLoss, inputs: Inputs) -> Tensor:
    pairs = zip(inputs.students, inputs.teachers, strict=True)
    return sum((similarity_preserving_loss(s, t) for s, t in pairs), torch.zeros((), dtype=torch.float64))


SP = Case(
    "similarity",
    SPLoss,
    lambda: Inputs(random(4, 3, 5, 2, seed=1), random(4, 7, seed=2)),
    ONE,
    similarity_preserving_loss,
    by_function,
    REFERENCES,
    MUTANTS,
    bad_calls=((random(4, 3, seed=1), random(2, 3, seed=2)), (random(4, seed=1), random(4, 3, seed=2))),
)

CASES = (SP,)
