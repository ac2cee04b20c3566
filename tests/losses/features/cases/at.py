"""The cases of attention transfer (AT)."""

import torch
from torch import Tensor

from lightning_kd.functional import attention_transfer_loss
from lightning_kd.losses import ATLoss, DistillationLoss
from tests.losses.case import Case, Inputs, Mutant, Reference, random, rows

ONE = {"student": "a", "teacher": "b"}
TWO = {"student": ["a", "b"], "teacher": ["c", "d"]}


def line(*values: float) -> Tensor:
    """One channel of one row of positions."""
    return rows(list(values)).reshape(1, 1, 1, -1)


TEACHER = line(-8.0, 6.0)
REFERENCES = (
    # (3, 4) / 5 = (.6, .8) against (8, 6) / 10 = (.8, .6): the mean of .04 and .04
    Reference({**ONE, "p": 1.0}, Inputs(line(3.0, 4.0), TEACHER), 0.04),
    # (9, 16) / sqrt(337) against (64, 36) / (4 sqrt(337)) = (16, 9) / sqrt(337): the mean of 49 / 337 twice
    Reference(ONE, Inputs(line(3.0, 4.0), TEACHER), 49 / 337),
    # the student's four positions (1, 5, 2, 6) are pooled in pairs to (3, 4)
    Reference({**ONE, "p": 1.0}, Inputs(line(1.0, 5.0, 2.0, 6.0), TEACHER), 0.04),
    # two channels (1, 2), (2, 2): squares add to (5, 8), of length sqrt(89)
    Reference(
        ONE,
        Inputs(rows([1.0, 2.0], [2.0, 2.0]).reshape(1, 2, 1, 2), TEACHER),
        ((5 / 89**0.5 - 16 / 337**0.5) ** 2 + (8 / 89**0.5 - 9 / 337**0.5) ** 2) / 2,
    ),
    # two pairs are added
    Reference(TWO, Inputs([line(3.0, 4.0), line(3.0, 4.0)], [TEACHER, TEACHER]), 98 / 337),
)
MUTANTS = (
    Mutant("sum over the positions", "F.mse_loss(", "2.0 * F.mse_loss("),
    Mutant("forget to normalise", "return unit(energy.mean(dim=1).flatten(1), dim=1)", "return energy.mean(1)"),
    Mutant("keep the sign of odd powers", "features.abs().pow(p)", "features.pow(p)"),
    Mutant("strongest channel", ".mean(dim=1)", ".amax(dim=1)"),
    Mutant("ignore p", "features.square() if p == 2.0 else features.abs().pow(p)", "features.square()"),
    Mutant("let the gradient reach the teacher", "teacher.detach()", "teacher"),
    Mutant(
        "detach the student",
        "attention_transfer_loss(student, teacher, p=self",
        "attention_transfer_loss(student.detach() + 0 * student, teacher, p=self",
    ),
)


def by_function(component: DistillationLoss, inputs: Inputs) -> Tensor:
    assert isinstance(component, ATLoss)
    pairs = zip(inputs.students, inputs.teachers, strict=True)
    values = (attention_transfer_loss(s, t, p=component.p) for s, t in pairs)
    return sum(values, torch.zeros((), dtype=torch.float64))


AT = Case(
    "attention",
    ATLoss,
    lambda: Inputs(random(4, 3, 5, 4, seed=1), random(4, 6, 5, 4, seed=2)),
    ONE,
    attention_transfer_loss,
    by_function,
    REFERENCES,
    MUTANTS,
    bad_calls=(
        (random(4, 3, 2, 2, seed=1), random(2, 3, 2, 2, seed=2)),
        (random(4, 3, seed=1), random(4, 3, seed=2)),
        (random(4, 3, 2, 2, seed=1), random(4, 3, 2, seed=2)),
    ),
    bad_builds=(((8, 16), (8, 16, 4, 4)), ((8, 16, 4, 4), (8, 5, 16))),
)
AT_STAGES = Case(
    "attention-stages",
    ATLoss,
    lambda: Inputs(
        [random(4, 3, 4, 4, seed=1), random(4, 2, 2, 3, seed=2)],
        [random(4, 5, 2, 5, seed=3), random(4, 3, 3, 2, seed=4)],
    ),
    {**TWO, "p": 3.0},
    attention_transfer_loss,
    by_function,
    REFERENCES,
)

CASES = (AT, AT_STAGES)
