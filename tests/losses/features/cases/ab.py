"""The cases of activation boundaries (AB)."""

import math

import torch
from torch import Tensor

from lightning_kd.functional import ab_loss
from lightning_kd.losses import ABLoss, DistillationLoss, tensors
from tests.losses.case import Case, Inputs, Mutant, Reference, random, rows

PLAIN = {"student": "a", "teacher": "b"}
ONE = {**PLAIN, "connector": "all"}
TWO = {"student": ["a", "b"], "teacher": ["c", "d"], "connector": "all"}


def line(*values: float) -> Tensor:
    """One channel of one row of positions."""
    return rows(list(values)).reshape(1, 1, 1, -1)


def halves(*values: float) -> Tensor:
    """The same in two samples."""
    return rows(list(values)).reshape(2, 1, 1, -1)


def connector(place: int) -> dict[str, Tensor]:
    """Weights that make -1.5, -.5, .5 and 1.5 out of 2000 times these, whose deviation is 1000 sqrt(5)."""
    name = f"projectors.{place}"
    return {
        f"{name}.conv.weight": torch.ones(1, 1, 1, 1, dtype=torch.float64),
        f"{name}.bn.weight": torch.full((1,), math.sqrt(5.0) / 2, dtype=torch.float64),
        f"{name}.bn.bias": torch.zeros(1, dtype=torch.float64),
    }


FAR = (-3000.0, -1000.0, 1000.0, 3000.0)
REFERENCES = (
    # maps of equal shape are compared as they are: 1 + .5, 0, 1 - .5 and 1 - 2 are missing to the margin
    Reference(PLAIN, Inputs(line(0.5, -2.0, 0.5, 2.0), line(-1.0, -2.0, 3.0, 4.0)), 0.003 * (2.25 + 0 + 0.25 + 0)),
    # signs -, +, +, - at -1.5, -.5, .5, 1.5: 1 - 1.5 is enough, 1.5, .5 and 2.5 are missing to the margin
    Reference(ONE, Inputs(line(*FAR), line(-1.0, 2.0, 3.0, -4.0)), 0.003 * (0 + 2.25 + 0.25 + 6.25), connector(0)),
    # at 0 nothing fires
    Reference(ONE, Inputs(line(*FAR), line(0.0, 2.0, 3.0, -4.0)), 0.003 * 8.75, connector(0)),
    # margin 2: .5, 2.5, 1.5 and 3.5 are missing
    Reference(
        {**ONE, "margin": 2.0},
        Inputs(line(*FAR), line(-1.0, 2.0, 3.0, -4.0)),
        0.003 * (0.25 + 6.25 + 2.25 + 12.25),
        connector(0),
    ),
    # the student is pooled to -1, 1; both signs are wrong by 2
    Reference(ONE, Inputs(line(*FAR), line(5.0, -5.0)), 0.003 * (4 + 4), connector(0)),
    # the first in two samples, which counts half; signs -, -, +, +: .5 is missing twice
    Reference(
        TWO,
        Inputs([halves(*FAR), halves(*FAR)], [halves(-1.0, 2.0, 3.0, -4.0), halves(-1.0, -1.0, 3.0, 4.0)]),
        0.003 * (8.75 / 2 / 2 + 0.5 / 2),
        connector(0) | connector(1),
    ),
)
MUTANTS = (
    Mutant("a connector for all", 'self.connector == "differ" and', "False and"),
    Mutant("without 3 / 1000", "_SCALE = 0.003", "_SCALE = 1.0"),
    Mutant("sum over the batch", " / max(len(student), 1)", ""),
    Mutant("mean over elements", "short.square().sum()", "short.square().mean()"),
    Mutant("the hinge is not squared", "short.square().sum()", "short.sum()"),
    Mutant("zero fires", "(teacher <= 0)", "(teacher < 0)"),
    Mutant("far beyond is wrong, too", "torch.relu(", "("),
    Mutant("margin on one side alone", "(margin + sign * student)", "(margin * (sign > 0) + sign * student)"),
    Mutant("every stage alike", " * 0.5 ** (len(values) - 1 - i)", "", tensors),
    Mutant("the first stage counts most", "(len(values) - 1 - i)", "i", tensors),
    Mutant("detach the student", "projector(student)", "projector(student.detach() + 0 * student)"),
)


def by_function(component: DistillationLoss, inputs: Inputs) -> Tensor:
    assert isinstance(component, ABLoss)
    triples = list(zip(component.projectors, inputs.students, inputs.teachers, strict=True))
    parts = [
        ab_loss(p(s), t, margin=component.margin) / 2 ** (len(triples) - i - 1) for i, (p, s, t) in enumerate(triples)
    ]
    return sum(parts, torch.zeros((), dtype=torch.float64))


AB = Case(
    "ab",
    ABLoss,
    lambda: Inputs(random(4, 3, 4, 3, seed=1), random(4, 5, 4, 3, seed=2)),
    {**ONE, "margin": 0.5, "stage_length": 3, "stage_unit": "step"},
    ab_loss,
    by_function,
    REFERENCES,
    MUTANTS,
    bad_calls=(
        (random(4, 3, 2, 2, seed=1), random(2, 3, 2, 2, seed=2)),
        (random(4, 3, 2, 2, seed=1), random(4, 5, 2, 2, seed=2)),
        (random(4, 3, 2, 2, seed=1), random(4, 3, 2, seed=2)),
    ),
    bad_builds=(((8, 16), (8, 16, 4, 4)), ((8, 16, 4, 4), (8, 10, 16))),
    zero_at_match=False,
    batch_statistics=True,
)
AB_STAGES = Case(
    "ab-stages",
    ABLoss,
    lambda: Inputs(
        [random(4, 2, 4, 4, seed=1), random(4, 3, 2, 3, seed=2)],
        [random(4, 3, 2, 5, seed=3), random(4, 2, 2, 3, seed=4)],
    ),
    TWO,
    ab_loss,
    by_function,
    REFERENCES,
    zero_at_match=False,
    batch_statistics=True,
)

CASES = (AB, AB_STAGES)
