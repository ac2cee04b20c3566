"""The cases of neuron selectivity transfer (NST)."""

from math import exp

import torch
from torch import Tensor

from lightning_kd.functional import nst_loss
from lightning_kd.losses import DistillationLoss, NSTLoss
from tests.losses.case import Case, Inputs, Mutant, Reference, random, rows

ONE = {"student": "a", "teacher": "b"}
TWO = {"student": ["a", "b"], "teacher": ["c", "d"]}


def maps(*channels: list[float]) -> Tensor:
    """One sample with its channels over one row of positions."""
    return rows(*channels).reshape(1, len(channels), 1, -1)


STUDENT, TEACHER = maps([3.0, 4.0]), maps([2.0, 0.0])  # (.6, .8) and (1, 0)
REFERENCES = (
    Reference(ONE, Inputs(STUDENT, TEACHER), 1 + 1 - 2 * 0.36),
    # two student channels (.6, .8), (.8, .6) of product .96, with the teacher .6 and .8
    Reference(ONE, Inputs(maps([3.0, 4.0], [4.0, 3.0]), TEACHER), 1 + (2 + 2 * 0.96**2) / 4 - 2 * (0.36 + 0.64) / 2),
    # a third, (0, 1), more channels than positions, takes the other form: products .96, .8 and .6
    Reference(
        ONE,
        Inputs(maps([3.0, 4.0], [4.0, 3.0], [0.0, 2.0]), TEACHER),
        1 + (3 + 2 * (0.96**2 + 0.64 + 0.36)) / 9 - 2 * (0.36 + 0.64) / 3,
    ),
    # the four positions (1, 5, 2, 6) are pooled to (3, 4)
    Reference(ONE, Inputs(maps([1.0, 5.0, 2.0, 6.0]), TEACHER), 1.28),
    Reference({**ONE, "kernel": "linear"}, Inputs(STUDENT, TEACHER), 1 + 1 - 2 * 0.6),
    # the squared distance is .16 + .64 = .8, of the pair and in the mean
    Reference({**ONE, "kernel": "gaussian"}, Inputs(STUDENT, TEACHER), 2 - 2 * exp(-0.5)),
    Reference({**ONE, "kernel": "gaussian", "bandwidth": 2.0}, Inputs(STUDENT, TEACHER), 2 - 2 * exp(-0.1)),
    Reference(TWO, Inputs([STUDENT, STUDENT], [TEACHER, TEACHER]), 2.56),
)
MUTANTS = (
    Mutant("forget to normalise", "return rows / lengths, lengths", "return rows, lengths"),
    Mutant("normalise over channels", "rows, dim=2, keepdim", "rows, dim=1, keepdim"),
    Mutant("one cross term", "value - 2.0 * cross", "value - cross"),
    Mutant("sum over channels", "beta=-1.0 / others, alpha=1.0 / channels", "beta=-1.0"),
    Mutant("variance for deviation", "bandwidth**2", "bandwidth"),
    Mutant("let the gradient reach the teacher", "teacher.detach()", "teacher"),
    Mutant(
        "detach the student",
        "nst_loss(student, teacher, kernel=self",
        "nst_loss(student.detach() + 0 * student, teacher, kernel=self",
    ),
)


def by_function(component: DistillationLoss, inputs: Inputs) -> Tensor:
    assert isinstance(component, NSTLoss)
    pairs = zip(inputs.students, inputs.teachers, strict=True)
    values = (nst_loss(s, t, kernel=component.kernel, bandwidth=component.bandwidth) for s, t in pairs)
    return sum(values, torch.zeros((), dtype=torch.float64))


BAD = ((random(4, 3, 2, 2, seed=1), random(2, 3, 2, 2, seed=2)), (random(4, 3, seed=1), random(4, 3, 2, 2, seed=2)))


def case(name: str, size: tuple[int, int], **options: object) -> Case:
    return Case(
        name,
        NSTLoss,
        lambda: Inputs(random(4, 3, *size, seed=1), random(4, 5, *size, seed=2)),
        {**ONE, **options},
        nst_loss,
        by_function,
        REFERENCES,
        MUTANTS,
        bad_calls=BAD,
        bad_builds=(((8, 16), (8, 16, 4, 4)),),
    )


CASES = (
    case("selectivity", (2, 2)),
    case("selectivity-many-positions", (3, 4)),
    case("selectivity-linear", (3, 2), kernel="linear"),
    case("selectivity-gaussian", (3, 2), kernel="gaussian", bandwidth=0.8),
)
