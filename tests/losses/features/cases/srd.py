"""The cases of the simple recipe (SRD).

The numbers are of the size of 1e6, beside whose variance the 1e-4 that is added to it is nothing.
"""

from math import log

import torch
from torch import Tensor

from lightning_kd.functional import srd_loss
from lightning_kd.losses import DistillationLoss, SRDLoss
from tests.losses.case import Case, Inputs, Mutant, Reference, random, rows

ONE = {"student": "a", "teacher": "b"}
TWO = {"student": ["a", "b"], "teacher": ["c", "d"]}


def column(*values: float) -> Tensor:
    """Samples of one channel, in millions."""
    return 1e6 * rows(list(values)).T


def weight(*values: list[float], pair: int = 0) -> dict[str, Tensor]:
    return {f"projectors.{pair}.linear.weight": rows(*values)}


STUDENT, TEACHER = column(1.0, 1.0, -1.0, -1.0), column(1.0, -1.0, 1.0, -1.0)  # differences 0, 2, -2 and 0
FIRST = column(5.0, 0.0, 0.0, 0.0)
REFERENCES = (
    Reference(ONE, Inputs(STUDENT, TEACHER), log(32.0), weight([1.0])),
    Reference({**ONE, "exponent": 2.0}, Inputs(STUDENT, TEACHER), log(8.0), weight([1.0])),
    # mean and scale of a channel make no difference
    Reference(ONE, Inputs(3 * STUDENT + 5e6, 0.1 * TEACHER - 2e6), log(32.0), weight([7.0])),
    # a negative projector: 2, 0, 0 and -2
    Reference(ONE, Inputs(STUDENT, TEACHER), log(32.0), weight([-1.0])),
    # from two channels to one: the sum (2, 0, 0, -2), brought to the deviation 1, sqrt(2) (1, 0, 0, -1)
    Reference(
        ONE,
        Inputs(torch.cat([STUDENT, TEACHER], dim=1), TEACHER),
        log(2 * (2**0.5 - 1) ** 4 + 2),
        weight([1.0, 1.0]),
    ),
    # the sum over two channels
    Reference(ONE, Inputs(STUDENT, torch.cat([TEACHER, -TEACHER], dim=1)), log(64.0), weight([1.0], [1.0])),
    # a map of two positions, whose mean is read, and tokens
    Reference(
        ONE,
        Inputs(torch.stack([STUDENT - FIRST, STUDENT + FIRST], dim=2).unsqueeze(2), TEACHER),
        log(32.0),
        weight([1.0]),
    ),
    Reference(
        ONE,
        Inputs(STUDENT, torch.stack([0.0 * TEACHER, 2.0 * TEACHER], dim=1)),
        log(32.0),
        weight([1.0]),
    ),
    # two pairs are added
    Reference(
        TWO,
        Inputs([STUDENT, STUDENT], [TEACHER, -STUDENT]),
        log(32.0) + log(64.0),
        {**weight([1.0]), **weight([1.0], pair=1)},
    ),
    # what is added to the variance counts where that is small: 1e-4 / 3 of it, so that (1, -1) are halved
    Reference(
        ONE,
        Inputs(1e-8 * (1 / 3) ** 0.5 * STUDENT, 1e-8 * (1 / 3) ** 0.5 * TEACHER),
        log(2.0),
        weight([1.0]),
    ),
)
MUTANTS = (
    Mutant("no logarithm", ".clamp_min(_SMALLEST).log()", ""),
    Mutant("mean in place of the sum", ".pow(exponent).sum()", ".pow(exponent).mean()"),
    Mutant("ignore the exponent", ".pow(exponent)", ".pow(4.0)"),
    Mutant("keep the mean", "(features - mean) /", "features /"),
    Mutant("unbiased variance", "correction=0", "correction=1"),
    Mutant("no epsilon", "variance + _EPS", "variance"),
    Mutant("normalise each sample", "torch.var_mean(features, dim=0", "torch.var_mean(features, dim=1"),
    Mutant("largest position", "features.mean(dim=(2, 3))", "features.amax(dim=(2, 3))"),
    Mutant("first token", "return features.mean(dim=1)", "return features[:, 0]"),
    Mutant("let the gradient reach the teacher", "teacher.detach()", "teacher"),
    Mutant(
        "detach the student",
        "srd_loss(projector(_pooled(student))",
        "srd_loss(projector(_pooled(student.detach() + 0 * student))",
    ),
)


def by_function(component: DistillationLoss, inputs: Inputs) -> Tensor:
    assert isinstance(component, SRDLoss)
    total = torch.zeros((), dtype=torch.float64)
    for projector, student, teacher in zip(component.projectors, inputs.students, inputs.teachers, strict=True):
        student, teacher = (one.flatten(2).mean(2) if one.ndim == 4 else one for one in (student, teacher))
        student, teacher = (one.mean(1) if one.ndim == 3 else one for one in (student, teacher))
        total = total + srd_loss(projector(student), teacher, exponent=component.exponent)
    return total


def case(name: str, inputs: Inputs, options: dict[str, object], **facts: object) -> Case:
    return Case(
        name,
        SRDLoss,
        lambda: inputs,
        options,
        srd_loss,
        by_function,
        REFERENCES,
        nonnegative=False,
        zero_at_match=False,
        batch_statistics=True,
        **facts,
    )


CASES = (
    case(
        "simple-recipe",
        Inputs(random(6, 3, seed=1), random(6, 5, seed=2)),
        ONE,
        mutants=MUTANTS,
        bad_calls=(
            (random(4, 3, seed=1), random(2, 3, seed=2)),
            (random(4, 3, seed=1), random(4, 5, seed=2)),
            (random(4, 3, 2, seed=1), random(4, 3, 2, seed=2)),
            (random(4, seed=1), random(4, seed=2)),
        ),
        bad_builds=(((8,), (8,)), ((8, 2, 2, 2, 2), (8, 2))),
    ),
    case("simple-recipe-maps", Inputs(random(4, 3, 3, 2, seed=1), random(4, 5, 2, 4, seed=2)), ONE),
    case(
        "simple-recipe-pairs",
        Inputs([random(4, 3, 2, seed=1), random(4, 2, seed=2)], [random(4, 3, 4, seed=3), random(4, 2, 3, 3, seed=4)]),
        {**TWO, "exponent": 2.0},
    ),
)
