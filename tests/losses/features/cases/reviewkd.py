"""The cases of knowledge review (ReviewKD)."""

import math

import torch
from torch import Tensor

from lightning_kd.functional import hcl_loss
from lightning_kd.losses import DistillationLoss, ReviewKDLoss
from tests.losses.case import Case, Inputs, Mutant, Reference, random, rows

TWO = {"student": ["a", "b"], "teacher": ["c", "d"]}
THREE = {"student": ["a", "b", "c"], "teacher": ["d", "e", "f"]}


def pair(*samples: list[float]) -> Tensor:
    """Two samples of one channel and one row of positions."""
    return rows(*samples).reshape(2, 1, 1, -1)


def fusion(place: int, variance: float, offset: float = 0.0) -> dict[str, Tensor]:
    """Weights that let a map of one channel through.

    The first norm restores a map of mean 0 and variance 5e6, the second makes one of the variance out of 1e6 times it.
    Beside such numbers the norms' own 1e-5 is nothing.
    """

    def one(value: float, *shape: int) -> Tensor:
        return torch.full(shape or (1,), value, dtype=torch.float64)

    centre = torch.zeros(1, 1, 3, 3, dtype=torch.float64)
    centre[0, 0, 1, 1] = 1.0
    return {
        f"fusions.{place}.enter.weight": one(1.0, 1, 1, 1, 1),
        f"fusions.{place}.enter_norm.weight": one(1000 * math.sqrt(5.0)),
        f"fusions.{place}.enter_norm.bias": one(0.0),
        f"fusions.{place}.leave.weight": centre,
        f"fusions.{place}.leave_norm.weight": one(math.sqrt(variance)),
        f"fusions.{place}.leave_norm.bias": one(offset),
    }


# sigmoid 1 / 2 for the stage itself, 3 / 4 for what comes from the later ones, at every position
ATTENTION = {
    "fusions.0.attention.weight": torch.zeros(2, 2, 1, 1, dtype=torch.float64),
    "fusions.0.attention.bias": torch.tensor([0.0, math.log(3.0)], dtype=torch.float64),
}
EARLY = pair([-3000.0, -1000.0, 1000.0, 3000.0], [-3000.0, -1000.0, 1000.0, 3000.0])
LATE = pair([-3000.0, -1000.0], [1000.0, 3000.0])
# The late stage passes on (-3, -1), (1, 3) of variance 5. Its differences are (0, -2), (0, 2): 2 on average, and 1 of
# their means -1 and 1: (2 + 1 / 2) / (3 / 2).
LATE_TEACHER, LATE_LOSS = pair([-3.0, 1.0], [1.0, 1.0]), 5 / 3
REFERENCES = (
    # 1 / 2 (-3, -1, 1, 3) + 3 / 4 (-3, -3, -1, -1) = (-3.75, -2.75, -.25, .75), and (-.75, .25, 2.75, 3.75), of
    # variance 2 (14.0625 + 7.5625 + .0625 + .5625) / 8. Differences (0, 0, 0, 2), (0, 0, 0, -2): 1 on average; in two
    # cells (0, 1), (0, -1): 1 / 2; in one .5, -.5: 1 / 4. So (1 + 1 / 4 + 1 / 16) / (7 / 4) = 3 / 4.
    Reference(
        TWO,
        Inputs([EARLY, LATE], [pair([-3.75, -2.75, -0.25, -1.25], [-0.75, 0.25, 2.75, 5.75]), LATE_TEACHER]),
        3 / 4 + LATE_LOSS,
        fusion(0, 5.5625) | ATTENTION | fusion(1, 5.0),
    ),
    # The early teacher has two positions: every second is taken, (-3.75, -.25), (-.75, 2.75), of mean -.5 and variance
    # 2 (3.25^2 + .25^2) / 4. Differences (1, 0), (0, -1): 1 / 2; in one cell .5, -.5: 1 / 4: (1 / 2 + 1 / 8) / (3 / 2).
    Reference(
        TWO,
        Inputs([EARLY, LATE], [pair([-4.75, -0.25], [-0.75, 3.75]), LATE_TEACHER]),
        5 / 12 + LATE_LOSS,
        fusion(0, 5.3125, -0.5) | ATTENTION | fusion(1, 5.0),
    ),
)
MUTANTS = (
    Mutant("no attention", "fused * own + later * others", "fused + later"),
    Mutant("attention the wrong way round", "own, others =", "others, own ="),
    Mutant("from the first stage to the last", "in reversed(stages)", "in stages"),
    Mutant("smooth resizing", 'mode="nearest"', 'mode="bilinear"'),
    Mutant("every level alike", "weight /= 2.0", "weight /= 1.0"),
    Mutant("weights that do not add up to 1", "return loss / total", "return loss"),
    Mutant("a level of the map's own size", "if level < max", "if level <= max"),
    Mutant("two levels", "_LEVELS = (4, 2, 1)", "_LEVELS = (4, 2)"),
    Mutant("mean over the stages", "return add_up(losses)", "return add_up(losses) / len(losses)"),
    Mutant("let the gradient reach the teacher", "teacher.detach()", "teacher"),
    Mutant("detach the student", "self.enter(student)", "self.enter(student.detach() + 0 * student)"),
)


def as_map(features: Tensor) -> Tensor:
    return features if features.ndim == 4 else features[:, :, None, None]


def by_function(component: DistillationLoss, inputs: Inputs) -> Tensor:
    assert isinstance(component, ReviewKDLoss)
    later, total = None, torch.zeros((), dtype=torch.float64)
    for fuse, s, t in reversed(list(zip(component.fusions, inputs.students, inputs.teachers, strict=True))):
        fused, later = fuse(as_map(s), later, as_map(t).shape[2:])
        total = total + hcl_loss(fused, as_map(t))
    return total


REVIEW = Case(
    "review",
    ReviewKDLoss,
    lambda: Inputs(
        [random(4, 2, 6, 5, seed=1), random(4, 3, 3, 3, seed=2)],
        [random(4, 3, 6, 5, seed=3), random(4, 2, 2, 3, seed=4)],
    ),
    TWO,
    hcl_loss,
    by_function,
    REFERENCES,
    MUTANTS,
    bad_calls=(
        (random(4, 3, 2, 2, seed=1), random(2, 3, 2, 2, seed=2)),
        (random(4, 3, 2, 2, seed=1), random(4, 5, 2, 2, seed=2)),
        (random(4, 3, 2, 2, seed=1), random(4, 3, 2, 3, seed=2)),
        (random(4, 3, seed=1), random(4, 3, seed=2)),
    ),
    bad_builds=(((8, 10, 16), (8, 16, 4, 4)), ((8, 16, 4, 4), (8, 10, 16))),
    zero_at_match=False,
    batch_statistics=True,
)
REVIEW_EMBEDDING = Case(
    "review-embedding",
    ReviewKDLoss,
    lambda: Inputs(
        [random(6, 2, 4, 4, seed=1), random(6, 3, 2, 2, seed=2), random(6, 3, seed=5)],
        [random(6, 3, 5, 5, seed=3), random(6, 2, 2, 2, seed=4), random(6, 4, seed=6)],
    ),
    {**THREE, "mid_channels": 2},
    hcl_loss,
    by_function,
    REFERENCES,
    zero_at_match=False,
    batch_statistics=True,
    single_sample=False,  # a batch normalisation has nothing to normalise in one vector
)

CASES = (REVIEW, REVIEW_EMBEDDING)
