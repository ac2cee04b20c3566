"""The cases of the learned temperature (CTKD)."""

import torch
from torch import Tensor

from lightning_kd.functional import ctkd_loss
from lightning_kd.losses import CTKDLoss, DistillationLoss
from tests.losses.case import Case, Inputs, Mutant, Reference, random, rows
from tests.losses.logits.cases.kd import LN3, QUARTERS

# sigmoid(0) is the middle of the range, and sigmoid(ln 3) is 3/4 of it
MIDDLE, HIGH = ({"raw_temperature": torch.tensor([value], dtype=torch.float64)} for value in (0.0, LN3))
REFERENCES = (
    # T = 2 of 1 to 3, from twice the logits, in one of two samples
    Reference(
        {"high": 3.0}, Inputs(rows([0.0, 0.0], [5.0, 1.0]), rows([2 * LN3, 0.0], [5.0, 1.0])), 2 * QUARTERS, MIDDLE
    ),
    # T = 2 + 3/4 * 4 = 5
    Reference(
        {"low": 2.0, "high": 6.0, "reversal": 0.0}, Inputs(rows([0.0, 0.0]), rows([5 * LN3, 0.0])), 25 * QUARTERS, HIGH
    ),
    # three positions of one sample, two of them alike
    Reference(
        {"high": 3.0},
        Inputs(rows([0.0] * 6).reshape(1, 2, 1, 3), rows([2 * LN3, 0.0, 0.0, 0.0, 0.0, 0.0]).reshape(1, 2, 1, 3)),
        4 * QUARTERS / 3,
        MIDDLE,
    ),
    # a temperature that nobody has trained: low + .7310586 * (high - low) of 1 and 21
    Reference({}, Inputs(rows([0.0, 0.0]), rows([15.621171572600098 * LN3, 0.0])), 15.621171572600098**2 * QUARTERS),
)
MUTANTS = (
    Mutant("no lowest temperature", "low + (high - low)", "(high - low)"),
    Mutant("the highest for the range", "(high - low)", "high"),
    Mutant("without a bound", "raw.sigmoid()", "raw"),
    Mutant("begin in the middle", "nn.Parameter(torch.ones(1))", "nn.Parameter(torch.zeros(1))"),
    Mutant(
        "forget to soften", "temperature=temperature.expand(rows)", "temperature=1.0 + 0 * temperature.expand(rows)"
    ),
    Mutant("detach the student", "return kd_loss(student_logits,", "return kd_loss(student_logits.detach(),"),
)


def by_function(component: DistillationLoss, inputs: Inputs) -> Tensor:
    assert isinstance(component, CTKDLoss)
    options = {name: getattr(component, name) for name in ("low", "high")}
    return ctkd_loss(inputs.students[0], inputs.teachers[0], component.raw_temperature, **options)


def ctkd(name: str, *shape: int) -> Case:
    return Case(
        name,
        CTKDLoss,
        lambda: Inputs(random(*shape, seed=1), random(*shape, seed=2)),
        {"high": 5.0, "length": 1},
        ctkd_loss,
        by_function,
        REFERENCES,
        MUTANTS,
        bad_calls=((random(*shape, seed=1), random(*shape, seed=2), torch.ones(3)),),
        bad_builds=(((8, 10), (8, 100)), ((8, 3, 10), (8, 3, 10)), ((8,), (8,))),
        slope=False,  # the gradient of the temperature is that of a loss that is to grow
    )


CASES = (ctkd("ctkd", 4, 5), ctkd("ctkd-dense", 4, 3, 2, 2))
