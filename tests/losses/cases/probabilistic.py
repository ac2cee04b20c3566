"""The cases of the probabilistic family."""

from math import log

import torch
from torch import Tensor

from lightning_kd.functional import pkt_loss
from lightning_kd.losses import DistillationLoss, PKTLoss
from tests.losses.case import Case, Inputs, Mutant, Reference, random, rows

ONE = {"student": "a", "teacher": "b"}
EXACT = {**ONE, "eps": 1e-12}  # what eps adds is beside the point of these numbers
TWO = {"student": ["a", "b"], "teacher": ["c", "d"], "eps": 1e-12}
STUDENT = rows([2.0, 0.0], [0.0, 3.0])  # cosine 0, kernel 1/2: each row (2/3, 1/3)
OPPOSITE = rows([1.0, 0.0], [-5.0, 0.0])  # cosine -1, kernel 0: each row (1, 0)
SIXTY = rows([1.0, 0.0], [1.0, 3.0**0.5])  # cosine 1/2, kernel 3/4: each row (4/7, 3/7)
FIRST = 2 * log(3 / 2) / 4
SECOND = 2 * (4 / 7 * log(6 / 7) + 3 / 7 * log(9 / 7)) / 4
REFERENCES = (
    Reference(EXACT, Inputs(STUDENT, OPPOSITE), FIRST),
    Reference(EXACT, Inputs(STUDENT.reshape(2, 2, 1, 1), SIXTY), SECOND),
    Reference(TWO, Inputs([STUDENT, STUDENT], [OPPOSITE, SIXTY]), FIRST + SECOND),
)
MUTANTS = (
    Mutant("batchmean", ".log()).mean()", ".log()).sum(dim=1).mean()"),
    Mutant("swap the two", "(its + eps) / (mine + eps)", "(mine + eps) / (its + eps)"),
    Mutant("forget the shift to 0..1", "(rows @ rows.T + 1.0) / 2.0", "rows @ rows.T"),
    Mutant("forget to normalise rows", "return kernel / kernel.sum(dim=1, keepdim=True)", "return kernel"),
    Mutant("forget the length", "keepdim=True) + eps)", "keepdim=True) * 0 + 1)"),
    Mutant("let the gradient reach the teacher", "teacher.detach()", "teacher"),
    Mutant("detach the student", "pkt_loss(s, t, eps", "pkt_loss(s.detach() + 0 * s, t, eps"),
)


def by_function(component: DistillationLoss, inputs: Inputs) -> Tensor:
    pairs = zip(inputs.students, inputs.teachers, strict=True)
    assert isinstance(component, PKTLoss)
    return sum((pkt_loss(s, t, eps=component.eps) for s, t in pairs), torch.zeros((), dtype=torch.float64))


PKT = Case(
    "probabilistic",
    PKTLoss,
    lambda: Inputs(random(4, 3, seed=1), random(4, 5, seed=2)),
    ONE,
    pkt_loss,
    by_function,
    REFERENCES,
    MUTANTS,
    bad_calls=((random(4, 3, seed=1), random(2, 3, seed=2)), (random(4, seed=1), random(4, 3, seed=2))),
    match_options={"eps": 1e-12},
)

CASES = (PKT,)
