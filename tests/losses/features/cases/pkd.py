"""The cases of Pearson distillation (PKD).

The numbers are of the size of 1e6, beside which the 1e-6 that is added to a deviation is nothing.
"""

import torch
from torch import Tensor

from lightning_kd.functional import pkd_loss
from lightning_kd.losses import DistillationLoss, PKDLoss
from tests.losses.case import Case, Inputs, Mutant, Reference, random, rows

ONE = {"student": "a", "teacher": "b"}
TWO = {"student": ["a", "b"], "teacher": ["c", "d"]}


def maps(*channels: list[float]) -> Tensor:
    """One sample with its channels over one row of positions, in millions."""
    return 1e6 * rows(*channels).reshape(1, len(channels), 1, -1)


STUDENT, TEACHER = [1.0, 2.0, 3.0], [5.0, 9.0, 7.0]  # (-1, 0, 1) and (-1, 1, 0), of deviation 1 each
THIRD = 1 / 3  # 0, 1 and 1: the mean 2 / 3, halved
REFERENCES = (
    Reference(ONE, Inputs(maps(STUDENT), maps(TEACHER)), THIRD),
    # the second channel correlates perfectly: the mean of the two
    Reference(ONE, Inputs(maps(STUDENT, STUDENT), maps(TEACHER, [0.0, 2.0, 4.0])), THIRD / 2),
    # the opposite: (-1, 0, 1) against (1, 0, -1), squares 4, 0 and 4
    Reference(ONE, Inputs(maps(STUDENT), maps([6.0, 4.0, 2.0])), 8 / 3 / 2),
    # two samples of two positions: (-1, -1, 1, 1) and (-1, 1, -1, 1), of deviation sqrt(4 / 3): 0, 4, 4, 0 times 3 / 4
    Reference(
        ONE,
        Inputs(maps([1.0, 1.0, 3.0, 3.0]).reshape(2, 1, 1, 2), maps([1.0, 3.0, 1.0, 3.0]).reshape(2, 1, 1, 2)),
        8 * 3 / 4 / 4 / 2,
    ),
    # three samples of one position, as a map and as vectors
    Reference(ONE, Inputs(maps(STUDENT).reshape(3, 1, 1, 1), maps(TEACHER).reshape(3, 1, 1, 1)), THIRD),
    Reference(ONE, Inputs(maps(STUDENT).reshape(3, 1), maps(TEACHER).reshape(3, 1)), THIRD),
    # three tokens of two channels, the second of which matches
    Reference(
        ONE,
        Inputs(1e6 * rows(STUDENT, STUDENT).T[None], 1e6 * rows(TEACHER, STUDENT).T[None]),
        THIRD / 2,
    ),
    # the student's six positions are pooled in pairs to (1, 2, 3)
    Reference(ONE, Inputs(maps([0.0, 2.0, 1.0, 3.0, 2.0, 4.0]), maps(TEACHER)), THIRD),
    # a constant channel has no deviation: (0, 0, 0) against (-1, 1, 0)
    Reference(ONE, Inputs(maps([2.0, 2.0, 2.0], STUDENT), maps(TEACHER, STUDENT)), THIRD / 2),
    # two pairs are added
    Reference(TWO, Inputs([maps(STUDENT), maps(STUDENT)], [maps(TEACHER), maps([6.0, 4.0, 2.0])]), THIRD + 4 / 3),
    # a projector (1, -1) from two channels to one: (3, 5, 7) - (2, 3, 4)
    Reference(
        ONE,
        Inputs(maps([3.0, 5.0, 7.0], [2.0, 3.0, 4.0]), maps(TEACHER)),
        THIRD,
        {"projectors.0.conv.weight": rows([1.0, -1.0]).reshape(1, 2, 1, 1)},
    ),
    # what is added to the deviation counts where that is small: (-1, 0, 1) / 3 and (-1, 1, 0) / 3 of deviations 5e-7
    Reference(ONE, Inputs(5e-13 * maps(STUDENT), 2.5e-13 * maps(TEACHER)), THIRD / 9),
)
MUTANTS = (
    Mutant("forget the half", "_normalised(teacher, axis)) / 2", "_normalised(teacher, axis))"),
    Mutant("biased deviation", "correction=1", "correction=0"),
    Mutant("variance for deviation", "1.0).sqrt()", "1.0)"),
    Mutant("keep the mean", "(features - mean) /", "features /"),
    Mutant("keep the deviation", "(features - mean) / (deviation + _EPS)", "(features - mean) / 1e6"),
    Mutant("each sample by itself", "if one != axis)", "if one > axis)"),
    Mutant("channels of tokens on axis 1", "axis = 2 if student.ndim == 3 else 1", "axis = 1"),
    Mutant("no epsilon", "(deviation + _EPS)", "deviation"),
    Mutant("let the gradient reach the teacher", "teacher.detach()", "teacher"),
    Mutant("detach the student", "pkd_loss(projector(student)", "pkd_loss(projector(student.detach() + 0 * student)"),
)


def by_function(component: DistillationLoss, inputs: Inputs) -> Tensor:
    assert isinstance(component, PKDLoss)
    triples = zip(component.projectors, inputs.students, inputs.teachers, strict=True)
    return sum((pkd_loss(p(s), t) for p, s, t in triples), torch.zeros((), dtype=torch.float64))


PKD = Case(
    "pearson",
    PKDLoss,
    lambda: Inputs(random(4, 3, 5, 4, seed=1), random(4, 3, 5, 4, seed=2)),
    ONE,
    pkd_loss,
    by_function,
    REFERENCES,
    MUTANTS,
    bad_calls=(
        (random(4, 3, 2, 2, seed=1), random(2, 3, 2, 2, seed=2)),
        (random(4, 3, 2, 2, seed=1), random(4, 5, 2, 2, seed=2)),
        (random(4, 3, seed=1), random(4, 3, 2, 2, seed=2)),
        (random(4, seed=1), random(4, seed=2)),
    ),
    bad_builds=(((8, 16), (8, 16, 4, 4)), ((8, 10, 16), (8, 11, 16)), ((8,), (8,))),
)
PKD_LEVELS = Case(
    "pearson-levels",
    PKDLoss,
    lambda: Inputs(
        [random(4, 3, 4, 4, seed=1), random(4, 2, 2, 4, seed=2)],
        [random(4, 5, 2, 4, seed=3), random(4, 3, 4, 2, seed=4)],
    ),
    TWO,
    pkd_loss,
    by_function,
    REFERENCES,
)
PKD_TOKENS = Case(
    "pearson-tokens",
    PKDLoss,
    lambda: Inputs(random(4, 3, 2, seed=1), random(4, 3, 5, seed=2)),
    ONE,
    pkd_loss,
    by_function,
    REFERENCES,
)
PKD_VECTORS = Case(
    "pearson-vectors",
    PKDLoss,
    lambda: Inputs(random(4, 3, seed=1), random(4, 3, seed=2)),
    ONE,
    pkd_loss,
    by_function,
    REFERENCES,
)

CASES = (PKD, PKD_LEVELS, PKD_TOKENS, PKD_VECTORS)
