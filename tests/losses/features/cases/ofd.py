"""The cases of overhauled feature distillation (OFD)."""

import math

import torch
from torch import Tensor

from lightning_kd.functional import ofd_loss
from lightning_kd.losses import DistillationLoss, OFDLoss, tensors
from tests.losses.case import Case, Inputs, Mutant, Reference, random, rows

ONE = {"student": "a", "teacher": "b"}
TWO = {"student": ["a", "b"], "teacher": ["c", "d"]}


def line(*channels: list[float]) -> Tensor:
    """One sample of one row of positions."""
    return rows(*channels).reshape(1, len(channels), 1, -1)


def halves(*values: float) -> Tensor:
    """Two samples of one channel."""
    return rows(list(values)).reshape(2, 1, 1, -1)


def connector(place: int, *offsets: float) -> dict[str, Tensor]:
    """Weights that make -3, -1, 1 and 3 plus the offset of the channel out of 1000 times the former.

    Their variance is 5, or 5e6, beside which the norm's own 1e-5 is nothing.
    """
    count, name = len(offsets), f"projectors.{place}"
    return {
        f"{name}.conv.weight": torch.ones(count, 1, 1, 1, dtype=torch.float64),
        f"{name}.bn.weight": torch.full((count,), math.sqrt(5.0), dtype=torch.float64),
        f"{name}.bn.bias": torch.tensor(offsets, dtype=torch.float64),
    }


FAR = [-3000.0, -1000.0, 1000.0, 3000.0]
REFERENCES = (
    # margin (-6 - 2) / 2 = -4; student -3, -1, 1, 3: 1 above the margin, 1 above -2, 3 below 4, 2.5 above .5
    Reference(ONE, Inputs(line(FAR), line([-6.0, -2.0, 4.0, 0.5])), 1 + 1 + 9 + 6.25, connector(0, 0.0)),
    # margin (-1 - 5 - 3) / 3 = -3; student -4, -2, 0, 2: below -1 is good, 1 and 3 above the margin, 2 below 4
    Reference(ONE, Inputs(line(FAR), line([-1.0, -5.0, -3.0, 4.0])), 0 + 1 + 9 + 4, connector(0, -1.0)),
    # the student is pooled to -2, 2; the margin is -6: 4 above it, 2 below 4
    Reference(ONE, Inputs(line(FAR), line([-6.0, 4.0])), 16 + 4, connector(0, 0.0)),
    # a second channel with a margin of its own, -6.5 / 3: below it is good, below -.5 too, 1 above it, 1 above 2
    Reference(
        ONE,
        Inputs(line(FAR), line([-6.0, -2.0, 4.0, 0.5], [-2.5, -0.5, -3.5, 2.0])),
        17.25 + (0 + 0 + (1 - -6.5 / 3) ** 2 + 1),
        connector(0, 0.0, 0.0),
    ),
    # the first two in two samples each; the earlier pair counts half
    Reference(
        TWO,
        Inputs([halves(*FAR), halves(*FAR)], [halves(-6.0, -2.0, 4.0, 0.5), halves(-1.0, -5.0, -3.0, 4.0)]),
        17.25 / 2 / 2 + 14 / 2,
        connector(0, 0.0) | connector(1, -1.0),
    ),
)
MUTANTS = (
    Mutant("sum over the batch", " / max(len(student), 1)", ""),
    Mutant("mean over elements", ".square().sum()", ".square().mean()"),
    Mutant("no margin", "upcast(margin.detach())", "(-1e6 + upcast(margin.detach()))"),
    Mutant("every difference", "above * matters.to(above.dtype)", "above"),
    Mutant("from above alone", " | (teacher > 0)", ""),
    Mutant("every stage alike", " * 0.5 ** (len(values) - 1 - i)", "", tensors),
    Mutant("the first stage counts most", "(len(values) - 1 - i)", "i", tensors),
    Mutant("the mean of all responses", ".clamp_max(0.0).sum", ".sum"),
    Mutant("the mean over all positions", "(features < 0).sum", "(features < 1e9).sum"),
    Mutant("let the gradient reach the teacher", "upcast(teacher.detach())", "upcast(teacher)"),
    Mutant("detach the student", "projector(s)", "projector(s.detach() + 0 * s)"),
)


def by_function(component: DistillationLoss, inputs: Inputs) -> Tensor:
    assert isinstance(component, OFDLoss)
    total = torch.zeros((), dtype=torch.float64)
    for i, (p, s, t) in enumerate(zip(component.projectors, inputs.students, inputs.teachers, strict=True)):
        margin = torch.stack([c[c < 0].mean() for c in t.transpose(0, 1)])
        total = total + ofd_loss(p(s), t, margin) / 2 ** (len(inputs.students) - i - 1)
    return total


OFD = Case(
    "ofd",
    OFDLoss,
    lambda: Inputs(random(4, 3, 4, 3, seed=1), random(4, 5, 4, 3, seed=2)),
    ONE,
    ofd_loss,
    by_function,
    REFERENCES,
    MUTANTS,
    bad_calls=(
        (random(4, 3, 2, 2, seed=1), random(2, 3, 2, 2, seed=2), random(3, seed=3)),
        (random(4, 3, 2, 2, seed=1), random(4, 5, 2, 2, seed=2), random(5, seed=3)),
        (random(4, 3, 2, 2, seed=1), random(4, 3, 2, 2, seed=2), random(5, seed=3)),
    ),
    bad_builds=(((8, 16), (8, 16, 4, 4)), ((8, 16, 4, 4), (8, 10, 16))),
    zero_at_match=False,
    batch_statistics=True,
)
OFD_STAGES = Case(
    "ofd-stages",
    OFDLoss,
    lambda: Inputs(
        [random(4, 2, 4, 4, seed=1), random(4, 3, 2, 3, seed=2)],
        [random(4, 3, 2, 5, seed=3), random(4, 2, 2, 3, seed=4)],
    ),
    TWO,
    ofd_loss,
    by_function,
    REFERENCES,
    zero_at_match=False,
    batch_statistics=True,
)

CASES = (OFD, OFD_STAGES)
