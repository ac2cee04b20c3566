"""The cases of factor transfer (FT)."""

from math import sqrt

import torch
from torch import Tensor

from lightning_kd.functional import factor_transfer_loss
from lightning_kd.losses import DistillationLoss, FTLoss
from tests.losses.case import Case, Inputs, Mutant, Reference, random, rows

ONE = {"student": "a", "teacher": "b"}
TWO = {"student": ["a", "b"], "teacher": ["c", "d"]}
CODE = {"variant": "repdistiller"}


def line(*values: float) -> Tensor:
    """One channel of one row of positions."""
    return rows(list(values)).reshape(1, 1, 1, -1)


def pass_through(of: int, to: int) -> Tensor:
    """A 3x3 convolution that hands on the first channels at their own position."""
    weight = torch.zeros(to, of, 3, 3, dtype=torch.float64)
    for i in range(min(of, to)):
        weight[i, i, 1, 1] = 1.0
    return weight


def plain(student: int, teacher: int, factor: int, pair: int = 0) -> dict[str, Tensor]:
    """Networks whose convolutions hand on the first channels."""
    values = {}
    for network, channels in (("paraphrasers", teacher), ("translators", student)):
        for i, (of, to) in enumerate([(channels, channels), (channels, factor), (factor, factor)]):
            values[f"{network}.{pair}.encoder.{3 * i}.weight"] = pass_through(of, to)
            values[f"{network}.{pair}.encoder.{3 * i}.bias"] = torch.zeros(to, dtype=torch.float64)
    return values


# The student's batch normalisation makes (1, 1, -1, -1) of these and each leaky ReLU a tenth of what is negative, so
# the last one returns (1, 1, -.1, -.1) times a number.
STUDENT = line(5.0, 5.0, 1.0, 1.0)
MINE = [1 / sqrt(2.02), 1 / sqrt(2.02), -0.1 / sqrt(2.02), -0.1 / sqrt(2.02)]
TEACHER = line(3.0, 4.0, -5000.0, 12.0)  # three leaky ReLUs make (3, 4, -5, 12) of it, of length sqrt(194)
ITS = [3 / sqrt(194), 4 / sqrt(194), -5 / sqrt(194), 12 / sqrt(194)]


def energy(values: list[float]) -> list[float]:
    length = sqrt(sum(v**4 for v in values))
    return [v**2 / length for v in values]


def mean(distances: list[float]) -> float:
    return sum(distances) / len(distances)


EXPECTED = mean([abs(s - t) for s, t in zip(MINE, ITS, strict=True)])
ENERGY = mean([abs(s - t) for s, t in zip(energy(MINE), energy(ITS), strict=True)])
REFERENCES = (
    Reference({**ONE, "rate": 1.0}, Inputs(STUDENT, TEACHER), EXPECTED, plain(1, 1, 1)),
    # a batch of two, the second teacher at one position: its distances are MINE and, at the third, 1 + .1 / sqrt(2.02)
    *(
        Reference(
            {**ONE, **options, "rate": 1.0},
            Inputs(torch.cat([STUDENT, STUDENT]), torch.cat([TEACHER, line(0.0, 0.0, 2.0, 0.0)])),
            (first + second) / 2,
            plain(1, 1, 1),
        )
        for options, first, second in (
            ({}, EXPECTED, mean([MINE[0], MINE[1], 1 - MINE[2], -MINE[3]])),
            (CODE, ENERGY, mean([energy(MINE)[0], energy(MINE)[1], 1 - energy(MINE)[2], energy(MINE)[3]])),
        )
    ),
    # of two teacher channels and two student channels the factor has one, the first
    Reference(
        ONE,
        Inputs(torch.cat([STUDENT, line(1.0, 2.0, 3.0, 5.0)], 1), torch.cat([TEACHER, line(9.0, 8.0, 7.0, 6.0)], 1)),
        EXPECTED,
        plain(2, 2, 1),
    ),
    # factors of two channels: the teacher's second one is empty, the student's is like its first
    Reference(
        {**ONE, "rate": 1.0},
        Inputs(torch.cat([STUDENT, 2 * STUDENT], 1), torch.cat([TEACHER, 0 * TEACHER], 1)),
        mean(
            [
                *[abs(s / sqrt(2) - t) for s, t in zip(MINE, ITS, strict=True)],
                *[abs(s / sqrt(2)) for s in MINE],
            ]
        ),
        plain(2, 2, 2),
        tolerance=1e-6,  # eps in the batch normalisation
    ),
    # the student's factor, of twice the positions, is pooled
    Reference(
        {**ONE, "rate": 1.0},
        Inputs(STUDENT.repeat_interleave(2, dim=3), TEACHER),
        EXPECTED,
        plain(1, 1, 1),
    ),
    Reference(
        {**ONE, **CODE, "rate": 1.0},
        Inputs(STUDENT, TEACHER),
        ENERGY,
        plain(1, 1, 1),
    ),
    Reference(
        {**ONE, **CODE, "rate": 1.0, "p1": 1.0, "p2": 2.0},
        Inputs(STUDENT, TEACHER),
        mean([(s - t) ** 2 for s, t in zip(MINE, ITS, strict=True)]),
        plain(1, 1, 1),
    ),
    Reference(
        {**TWO, "rate": 1.0},
        Inputs([STUDENT, STUDENT], [TEACHER, TEACHER]),
        2 * EXPECTED,
        {**plain(1, 1, 1), **plain(1, 1, 1, pair=1)},
    ),
)
MUTANTS = (
    Mutant(
        "sum over the batch in RepDistiller's variant",
        "F.l1_loss(student_direction, teacher_direction)",
        "F.l1_loss(student_direction, teacher_direction) * len(student)",
    ),
    Mutant("another slope of the leaky ReLU", "nn.LeakyReLU(0.1", "nn.LeakyReLU(0.01"),
    Mutant(
        "normalise each channel",
        "student.flatten(1), teacher.flatten(1)",
        "student.flatten(0, 1).flatten(1), teacher.flatten(0, 1).flatten(1)",
    ),
    Mutant("squares", "/ scaled_length).sum()", "/ scaled_length).square().sum()"),
    Mutant("sum over the batch", "total / student.numel()", "total / student[0].numel()"),
    Mutant("batch normalisation in the other network", "if norm else nn.Identity()", "if not norm else nn.Identity()"),
    Mutant("forget p2", "if p2 == 1.0:", "if p2 > 0:"),
    Mutant("forget p1", "if p == 2.0 else factor.pow(p)", "if p > 0 else factor.pow(p)"),
    Mutant("the teacher as it is", "factor = paraphraser(teacher)", "factor = teacher"),
    Mutant("detach the student", "translator(student)", "translator(student.detach() + 0 * student)"),
)


def by_function(component: DistillationLoss, inputs: Inputs) -> Tensor:
    assert isinstance(component, FTLoss)
    networks = zip(component.translators, component.paraphrasers, strict=True)
    pairs = zip(inputs.students, inputs.teachers, strict=True)
    options = {"variant": component.variant, "p1": component.p1, "p2": component.p2}
    total = torch.zeros((), dtype=torch.float64)
    for (translator, paraphraser), (s, t) in zip(networks, pairs, strict=True):
        total = total + factor_transfer_loss(translator(s), paraphraser(t), **options)
    return total


def case(name: str, inputs: Inputs, options: dict[str, object], **facts: object) -> Case:
    return Case(
        name,
        FTLoss,
        lambda: inputs,
        options,
        factor_transfer_loss,
        by_function,
        REFERENCES,
        zero_at_match=False,  # the two networks differ
        batch_statistics=True,
        frozen="paraphrasers.",
        **facts,
    )


CASES = (
    case(
        "factor",
        Inputs(random(4, 3, 3, 4, seed=1), random(4, 4, 3, 4, seed=2)),
        ONE,
        mutants=MUTANTS,
        bad_calls=(
            (random(4, 3, 2, 2, seed=1), random(2, 3, 2, 2, seed=2)),
            (random(4, 3, seed=1), random(4, 3, 2, 2, seed=2)),
            (random(4, 3, 2, 2, seed=1), random(4, 4, 2, 2, seed=2)),
        ),
        bad_builds=(((8, 16), (8, 16, 4, 4)), ((8, 10, 16), (8, 10, 16))),
    ),
    case(
        "factor-pairs",
        Inputs(
            [random(4, 2, 4, 2, seed=1), random(4, 3, 2, 2, seed=2)],
            [random(4, 2, 2, 3, seed=3), random(4, 3, 3, 4, seed=4)],
        ),
        {**TWO, "rate": 0.75, "stage_length": 0},
    ),
    case("factor-pooled", Inputs(random(4, 3, 3, 4, seed=1), random(4, 4, 3, 2, seed=2)), {**ONE, **CODE, "p2": 2.0}),
)
