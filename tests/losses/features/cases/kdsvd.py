"""The cases of distillation by singular value decomposition (KD-SVD)."""

from itertools import pairwise
from math import exp

import torch
from torch import Tensor

from lightning_kd.functional import kdsvd_loss
from lightning_kd.losses import DistillationLoss, KDSVDLoss
from tests.losses.case import Case, Inputs, Mutant, Reference, random, rows

TWO = {"student": ["a", "b"], "teacher": ["c", "d"]}
THREE = {"student": ["a", "b", "c"], "teacher": ["d", "e", "f"]}
Vector = tuple[float, float]


def positions(*values: list[float]) -> Tensor:
    """One sample: a row of positions, each with its channels."""
    return rows(*values).T[None, :, None, :].contiguous()


def related(bottom: list[Vector], top: list[Vector]) -> list[float]:
    """How each channel of one direction is related to each of another."""
    return [exp(-((t - b) ** 2) / 8) for x, y in zip(bottom, top, strict=True) for b in x for t in y]


def distance(student: list[list[Vector]], teacher: list[list[Vector]]) -> float:
    """The sum over neighbouring layers."""
    total = 0.0
    for mine, its in zip(pairwise(student), pairwise(teacher), strict=True):
        total += sum((s - t) ** 2 for s, t in zip(related(*mine), related(*its), strict=True))
    return total


UP, RIGHT, SLANTED = positions([0.0, 3.0]), positions([2.0, 0.0]), positions([6.0, 8.0])
SPREAD = positions([4.0, 0.0], [0.0, 3.0])  # values 4 and 3, vectors (1, 0) and (0, 1)
TURNED = positions([3.0, 4.0], [-1.6, 1.2])  # values 5 and 2, vectors (.6, .8) and (-.8, .6)
ONE_STEP = distance([[(0, 1)], [(0.6, 0.8)]], [[(0, 1)], [(1, 0)]])
REFERENCES = (
    Reference(TWO, Inputs([UP, SLANTED], [UP, RIGHT]), ONE_STEP),
    # whatever the sign
    Reference(TWO, Inputs([-UP, SLANTED], [-UP, -RIGHT]), ONE_STEP),
    Reference(TWO, Inputs([UP, -SLANTED], [UP, -RIGHT]), ONE_STEP),
    # the second of the student's vectors is the nearest to (1, 0), turned: (.8, -.6)
    Reference(TWO, Inputs([UP, TURNED], [UP, RIGHT]), distance([[(0, 1)], [(0.8, -0.6)]], [[(0, 1)], [(1, 0)]])),
    # two vectors, of length .8 and .6 as the teacher's values 4 and 3 are
    Reference(
        {**TWO, "k": 2},
        Inputs([SPREAD, TURNED], [SPREAD, SPREAD]),
        distance(
            [[(0.8, 0), (0, 0.6)], [(0.8 * 0.8, -0.6 * 0.8), (0.6 * 0.6, 0.8 * 0.6)]],
            [[(0.8, 0), (0, 0.6)], [(0.8, 0), (0, 0.6)]],
        ),
    ),
    # two samples, the second a match: the mean
    Reference(
        TWO,
        Inputs([torch.cat([UP, UP]), torch.cat([SLANTED, RIGHT])], [torch.cat([UP, UP]), torch.cat([RIGHT] * 2)]),
        ONE_STEP / 2,
    ),
    # three layers: two steps
    Reference(
        THREE,
        Inputs([UP, SLANTED, positions([4.0, 3.0])], [UP, RIGHT, UP]),
        distance([[(0, 1)], [(0.6, 0.8)], [(0.8, 0.6)]], [[(0, 1)], [(1, 0)], [(0, 1)]]),
    ),
    # a projector from one channel to two: (3, 4), of which the direction is (.6, .8)
    Reference(
        TWO,
        Inputs([UP, positions([1.0])], [UP, RIGHT]),
        ONE_STEP,
        {"projectors.1.conv.weight": rows([3.0], [4.0]).reshape(2, 1, 1, 1)},
    ),
)
MUTANTS = (
    Mutant("sum over the samples", " / len(student_bottom)", ""),
    Mutant("another width", "/ -8.0", "/ -2.0"),
    Mutant("the first student vectors alone", "_MORE = 3", "_MORE = 0"),
    Mutant("the nearest with its sign", "cosines.abs().argmax", "cosines.argmax"),
    Mutant("keep the student's sign", "vectors.gather(2, index) * signs", "vectors.gather(2, index)"),
    Mutant(
        "keep the teacher's sign",
        "vectors.sum(dim=1, keepdim=True) < 0, -1.0",
        "vectors.sum(dim=1, keepdim=True) < 0, 1.0",
    ),
    Mutant("vectors of length one", "return chosen * lengths[:, None, :k]", "return chosen"),
    Mutant("values as they are", "lengths = values / ", "lengths = values + 0 * "),
    Mutant("left singular vectors", "features).flatten(2).mT", "features).flatten(2)"),
    Mutant("every layer to the last", "pairwise(projected)", "[(one, projected[-1]) for one in projected[:-1]]"),
    Mutant(
        "detach the student",
        "projector(features) for projector",
        "projector(features.detach() + 0 * features) for projector",
    ),
)


def by_function(component: DistillationLoss, inputs: Inputs) -> Tensor:
    assert isinstance(component, KDSVDLoss)
    student = [projector(s) for projector, s in zip(component.projectors, inputs.students, strict=True)]
    steps = zip(pairwise(student), pairwise(inputs.teachers), strict=True)
    return sum((kdsvd_loss(*s, *t, k=component.k) for s, t in steps), torch.zeros((), dtype=torch.float64))


def positive(*size: int, seed: int) -> Tensor:
    """Maps as after a ReLU, of which one direction explains most."""
    return 0.5 + random(*size, seed=seed).abs()


KDSVD = Case(
    "singular",
    KDSVDLoss,
    lambda: Inputs(
        [positive(4, 5, 4, 3, seed=1), positive(4, 6, 2, 3, seed=2)],
        [positive(4, 5, 4, 3, seed=3), positive(4, 6, 2, 3, seed=4)],
    ),
    TWO,
    kdsvd_loss,
    by_function,
    REFERENCES,
    MUTANTS,
    bad_calls=(
        (
            random(4, 3, 2, 2, seed=1),
            random(4, 3, 2, 2, seed=1),
            random(2, 3, 2, 2, seed=2),
            random(2, 3, 2, 2, seed=2),
        ),
        (
            random(4, 3, 2, 2, seed=1),
            random(4, 5, 2, 2, seed=1),
            random(4, 3, 2, 2, seed=2),
            random(4, 6, 2, 2, seed=2),
        ),
        (random(4, 3, seed=1), random(4, 3, seed=1), random(4, 3, seed=2), random(4, 3, seed=2)),
    ),
    bad_builds=(((8, 16), (8, 16, 4, 4)), ((8, 16, 4, 4), (8, 5, 16))),
)
KDSVD_PROJECTED = Case(
    "singular-projected",
    KDSVDLoss,
    lambda: Inputs(
        [positive(4, 3, 4, 3, seed=1), positive(4, 5, 2, 3, seed=2), positive(4, 6, 2, 2, seed=5)],
        [positive(4, 5, 3, 3, seed=3), positive(4, 6, 4, 3, seed=4), positive(4, 6, 1, 2, seed=6)],
    ),
    {**THREE, "k": 2},
    kdsvd_loss,
    by_function,
    REFERENCES,
    # from three channels to five: what a projector in 16 bits rounds are two directions more
    tolerance={torch.float16: 2e-2},
)

CASES = (KDSVD, KDSVD_PROJECTED)
