"""The cases of inter-channel correlation (ICKD)."""

from math import sqrt

import torch
from torch import Tensor

from lightning_kd.functional import ickd_loss
from lightning_kd.losses import DistillationLoss, ICKDLoss
from lightning_kd.projectors import ConvProjector, IdentityProjector
from tests.losses.case import Case, Inputs, Mutant, Reference, random, rows

ONE = {"student": "a", "teacher": "b"}
TWO = {"student": ["a", "b"], "teacher": ["c", "d"]}

CHANNELS = rows([1.0, 0.0], [1.0, 1.0]).reshape(1, 2, 1, 2)  # products ((1, 1), (1, 2))
APART = rows([2.0, 0.0], [0.0, 1.0]).reshape(1, 2, 2, 1)  # products ((4, 0), (0, 1))
ICKD_VALUE = (2 - 2 / sqrt(2) + 2 - 2 * 2 / sqrt(5)) / 2
AS_IT_IS = {"projector": IdentityProjector()}
ICKD_REFERENCES = (
    Reference({**ONE, **AS_IT_IS}, Inputs(CHANNELS, APART), ICKD_VALUE),
    # a second sample that agrees halves it
    Reference(
        {**ONE, **AS_IT_IS},
        Inputs(torch.cat([CHANNELS, CHANNELS]), torch.cat([APART.mT, 3 * CHANNELS])),
        ICKD_VALUE / 2,
    ),
    Reference({**TWO, **AS_IT_IS}, Inputs([CHANNELS, CHANNELS], [APART, APART]), 2 * ICKD_VALUE),
    # a projector makes (1, 0), (1, 1) to (1, 0), (0, 1), against the same two
    Reference(
        {**ONE, "projector": ConvProjector(bias=False)},
        Inputs(CHANNELS, CHANNELS),
        ICKD_VALUE,
        {"projectors.0.conv.weight": rows([1.0, 0.0], [-1.0, 1.0]).reshape(2, 2, 1, 1)},
    ),
)
ICKD_MUTANTS = (
    Mutant("forget to normalise", "unit(products, dim=2)", "products"),
    Mutant("normalise the channels", "channels @ channels.mT, 2", "unit(channels, 1) @ channels.mT, 2"),
    Mutant("mean over the row", "(batch * channels)", "student_products.numel()"),
    Mutant("sum over the batch", "(batch * channels)", "channels"),
    Mutant("let the gradient reach the teacher", "(student, teacher.detach())", "(student, teacher)"),
    Mutant("detach the student", "ickd_loss(projector(student)", "ickd_loss(projector(student.detach() + 0 * student)"),
)


def ickd_by_function(component: DistillationLoss, inputs: Inputs) -> Tensor:
    assert isinstance(component, ICKDLoss)
    triples = zip(component.projectors, inputs.students, inputs.teachers, strict=True)
    return sum((ickd_loss(p(s), t) for p, s, t in triples), torch.zeros((), dtype=torch.float64))


ICKD = Case(
    "inter-channel",
    ICKDLoss,
    lambda: Inputs(random(4, 3, 4, 2, seed=1), random(4, 5, 2, 2, seed=2)),
    {**ONE, "projector": ConvProjector(bias=False)},
    ickd_loss,
    ickd_by_function,
    ICKD_REFERENCES,
    ICKD_MUTANTS,
    bad_calls=(
        (random(4, 3, 2, 2, seed=1), random(2, 3, 2, 2, seed=2)),
        (random(4, 3, 2, 2, seed=1), random(4, 5, 2, 2, seed=2)),
        (random(4, 3, seed=1), random(4, 3, 2, 2, seed=2)),
    ),
    bad_builds=(((8, 16), (8, 16, 4, 4)),),
    match_options={"projector": IdentityProjector()},
)

CASES = (ICKD,)
