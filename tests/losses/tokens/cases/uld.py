"""The cases of universal logit distillation (ULD)."""

import math

import torch
from torch import Tensor

from lightning_kd.functional import uld_loss
from lightning_kd.losses import DistillationLoss, ULDLoss
from tests.losses.case import Case, Inputs, Mutant, Reference, random, rows

LN2, LN3 = math.log(2.0), math.log(3.0)
NONE = -100


def tokens(*values: list[float]) -> Tensor:
    """One row of tokens."""
    return rows(*values).unsqueeze(0)


REFERENCES = (
    # (3/4, 1/4, 0) against (1/2, 1/4, 1/4), which stands in another order
    Reference({}, Inputs(rows([LN3, 0.0]), rows([0.0, LN2, 0.0]), {"target": torch.tensor([1])}), 0.5),
    # The first token of each answer is predicted by the position before it; the student's second has no partner.
    Reference(
        {},
        Inputs(
            tokens([9.0, 0.0], [0.0, 0.0], [9.0, 0.0], [0.0, 0.0]),
            tokens([0.0, LN3], [0.0, 7.0]),
            {"target": torch.tensor([[NONE, NONE, 1, 0]]), "teacher_target": torch.tensor([[NONE, 0]])},
        ),
        0.5,
    ),
    # Two rows: one token that is 1/2 off, and two of which the second is 1/2 off at T = 2: (1/2 + 1/4) / 2.
    # A third has no answer, and a fourth one at its very beginning.
    Reference(
        {"temperature": 2.0},
        Inputs(
            torch.zeros(4, 3, 2, dtype=torch.float64),
            torch.stack(
                [
                    rows([0.0, 2 * LN3], [0.0, 9.0], [0.0, 0.0]),
                    rows([0.0, 0.0], [0.0, 2 * LN3], [9.0, 0.0]),
                    rows([9.0, 0.0], [9.0, 0.0], [9.0, 0.0]),
                    rows([9.0, 0.0], [9.0, 0.0], [9.0, 0.0]),
                ]
            ),
            {"target": torch.tensor([[NONE, 1, NONE], [NONE, 1, 1], [NONE] * 3, [1, NONE, NONE]])},
        ),
        0.375,
    ),
)
MUTANTS = (
    Mutant("the logits at the token", "_AHEAD = 1", "_AHEAD = 0"),
    Mutant("no order", ".sort(-1, descending=True).values", ""),
    Mutant("every row alike", "distance / of_row.clamp_min(1)", "distance"),
    Mutant("rows without an answer", "(tokens > 0).sum()", "(tokens > -1).sum()"),
    Mutant("half of the distance", "(q - p).abs().sum(-1)", "(q - p).abs().sum(-1) / 2"),
    Mutant("the first token at the end", " & (order >= ahead)", ""),
    Mutant("forget the temperature", "precise(rows, temperature) / temperature", "precise(rows, temperature)"),
    Mutant("answers of other lengths", "has_ours & has_theirs", "has_ours"),
    Mutant("let the gradient reach the teacher", "teacher.detach()", "teacher"),
)


def by_function(component: DistillationLoss, inputs: Inputs) -> Tensor:
    assert isinstance(component, ULDLoss)
    labels = inputs.extra["target"], inputs.extra["target"]
    return uld_loss(inputs.students[0], inputs.teachers[0], *labels, temperature=component.temperature)


def inputs() -> Inputs:
    ours = torch.tensor([[NONE, 1, 1, NONE, 1], [NONE, NONE, 1, 1, NONE]] * 2)
    return Inputs(random(4, 5, 6, seed=1), random(4, 5, 7, seed=2), {"target": ours})


LABELS = torch.zeros(4, 5, dtype=torch.long)
ULD = Case(
    "uld",
    ULDLoss,
    inputs,
    {"temperature": 2.0},
    uld_loss,
    by_function,
    REFERENCES,
    MUTANTS,
    bad_calls=(
        (random(4, 5, 6, seed=1), random(3, 5, 7, seed=2), LABELS, LABELS[:3]),
        (random(4, 5, 6, seed=1), random(4, 7, seed=2), LABELS, LABELS[:, 0]),
        (random(4, 5, 6, seed=1), random(4, 6, 7, seed=2), LABELS, LABELS),
    ),
    bad_builds=(((4, 5, 6), (4, 6)), ((4, 5, 6, 6), (4, 5, 6, 6))),
)
PAIRED = Case(
    "uld-rows",
    ULDLoss,
    lambda: Inputs(random(4, 6, seed=1), random(4, 7, seed=2), {"target": torch.tensor([1, NONE, NONE, 2])}),
    {},
    uld_loss,
    lambda _, i: uld_loss(i.students[0], i.teachers[0], i.extra["target"], i.extra["target"]),
    REFERENCES,
)

CASES = (ULD, PAIRED)
