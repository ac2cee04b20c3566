"""The cases of channel-wise distillation (CWD)."""

from math import e, exp, log

import torch
from torch import Tensor

from lightning_kd.functional import cwd_loss
from lightning_kd.losses import CWDLoss, DistillationLoss
from lightning_kd.projectors import ConvProjector
from tests.losses.case import Case, Inputs, Mutant, Reference, random, rows

ONE = {"student": "a", "teacher": "b"}
TWO = {"student": ["a", "b"], "teacher": ["c", "d"]}
LN3 = log(3.0)


def maps(*channels: list[float]) -> Tensor:
    """One sample with its channels over one row of positions."""
    return rows(*channels).reshape(1, len(channels), 1, -1)


def kl(teacher: float, student: float) -> float:
    """Divergence of the two positions (s, 1 - s) from (t, 1 - t)."""
    return teacher * log(teacher / student) + (1 - teacher) * log((1 - teacher) / (1 - student))


FLAT = maps([0.0, 0.0])
REFERENCES = (
    # at temperature 2 the teacher's (2, 0) are (1, 0): e / (1 + e) against one half
    Reference({**ONE, "temperature": 2.0}, Inputs(FLAT, maps([2.0, 0.0])), 4 * kl(e / (1 + e), 0.5)),
    # temperature 4 by default: (4 ln 3, 0) are three quarters and one quarter
    Reference(ONE, Inputs(FLAT, maps([4 * LN3, 0.0])), 16 * kl(0.75, 0.5)),
    # not symmetric, and the student's own mean makes no difference
    Reference({**ONE, "temperature": 1.0}, Inputs(maps([7 + LN3, 7.0]), FLAT), kl(0.5, 0.75)),
    # the second channel matches, but for a constant: the mean of the two channels
    Reference(
        {**ONE, "temperature": 1.0},
        Inputs(maps([0.0, 0.0], [5.0, 6.0]), maps([LN3, 0.0], [1.0, 2.0])),
        kl(0.75, 0.5) / 2,
    ),
    # two samples: the mean
    Reference(
        {**ONE, "temperature": 1.0},
        Inputs(torch.cat([FLAT, FLAT]), torch.cat([maps([LN3, 0.0]), maps([1.0, 1.0])])),
        kl(0.75, 0.5) / 2,
    ),
    # the student's four positions (1, 5, 2, 6) are pooled in pairs to (3, 4)
    Reference(
        {**ONE, "temperature": 1.0},
        Inputs(maps([1.0, 5.0, 2.0, 6.0]), maps([LN3, 0.0])),
        kl(0.75, 1 / (1 + exp(1.0))),
    ),
    # two pairs are added
    Reference(
        {**TWO, "temperature": 1.0},
        Inputs([FLAT, FLAT], [maps([LN3, 0.0]), maps([0.0, LN3])]),
        2 * kl(0.75, 0.5),
    ),
    # a projector (1, -1) from two channels to one: (3, 4) - (2, 3) = (1, 1)
    Reference(
        {**ONE, "temperature": 1.0},
        Inputs(maps([3.0, 4.0], [2.0, 3.0]), maps([LN3, 0.0])),
        kl(0.75, 0.5),
        {"projectors.0.conv.weight": rows([1.0, -1.0]).reshape(1, 2, 1, 1)},
    ),
)
MUTANTS = (
    Mutant("forget the squared temperature", "(temperature**2 / channels)", "(1.0 / channels)"),
    Mutant("no temperature", "(one / temperature)", "one"),
    Mutant("sum over the channels", "channels = student.shape[0] * student.shape[1]", "channels = student.shape[0]"),
    Mutant("sum over the samples", "channels = student.shape[0] * student.shape[1]", "channels = student.shape[1]"),
    Mutant("softmax over the channels", ".log_softmax(dim=2)", ".log_softmax(dim=1)"),
    Mutant("swap the two", "F.kl_div(student, teacher,", "F.kl_div(teacher, student,"),
    Mutant("mean over the positions", 'reduction="sum"', 'reduction="batchmean"'),
    Mutant("let the gradient reach the teacher", "teacher.detach()", "teacher"),
    Mutant(
        "detach the student",
        "cwd_loss(projector(student), teacher,",
        "cwd_loss(projector(student.detach() + 0 * student), teacher,",
    ),
)


def by_function(component: DistillationLoss, inputs: Inputs) -> Tensor:
    assert isinstance(component, CWDLoss)
    triples = zip(component.projectors, inputs.students, inputs.teachers, strict=True)
    values = (cwd_loss(p(s), t, temperature=component.now(component.temperature)) for p, s, t in triples)
    return sum(values, torch.zeros((), dtype=torch.float64))


CWD = Case(
    "channel-wise",
    CWDLoss,
    lambda: Inputs(random(4, 3, 5, 4, seed=1), random(4, 3, 5, 4, seed=2)),
    ONE,
    cwd_loss,
    by_function,
    REFERENCES,
    MUTANTS,
    bad_calls=(
        (random(4, 3, 2, 2, seed=1), random(2, 3, 2, 2, seed=2)),
        (random(4, 3, 2, 2, seed=1), random(4, 5, 2, 2, seed=2)),
        (random(4, 3, seed=1), random(4, 3, seed=2)),
        (random(4, 3, 2, 2, seed=1), random(4, 3, 2, seed=2)),
    ),
    bad_builds=(((8, 16), (8, 16, 4, 4)), ((8, 16, 4, 4), (8, 5, 16))),
)
CWD_WIDTHS = Case(
    "channel-wise-widths",
    CWDLoss,
    lambda: Inputs(
        [random(4, 3, 4, 4, seed=1), random(4, 2, 2, 4, seed=2)],
        [random(4, 5, 2, 4, seed=3), random(4, 3, 4, 2, seed=4)],
    ),
    {**TWO, "temperature": 2.0},
    cwd_loss,
    by_function,
    REFERENCES,
)
CWD_PROJECTED = Case(
    "channel-wise-projected",
    CWDLoss,
    lambda: Inputs(random(4, 3, 3, 4, seed=1), random(4, 5, 3, 4, seed=2)),
    {**ONE, "projector": ConvProjector(bias=False, activation=True)},
    cwd_loss,
    by_function,
    REFERENCES,
    match_options={"projector": None},
)

CASES = (CWD, CWD_WIDTHS, CWD_PROJECTED)
