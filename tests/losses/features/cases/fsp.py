"""The cases of flow distillation (FSP)."""

from itertools import pairwise

import torch
from torch import Tensor

from lightning_kd.functional import fsp_loss
from lightning_kd.losses import DistillationLoss, FSPLoss
from tests.losses.case import Case, Inputs, Mutant, Reference, random, rows

TWO = {"student": ["a", "b"], "teacher": ["c", "d"]}
THREE = {"student": ["a", "b", "c"], "teacher": ["d", "e", "f"]}


def line(*values: float) -> Tensor:
    """One channel of one row of positions."""
    return rows(list(values)).reshape(1, 1, 1, -1)


REFERENCES = (
    # (1 * 3 + 2 * 4) / 2 = 5.5 against (2 * 1 + 0 * 1) / 2 = 1
    Reference(TWO, Inputs([line(1.0, 2.0), line(3.0, 4.0)], [line(2.0, 0.0), line(1.0, 1.0)]), 4.5**2),
    # the student's four positions (0, 2, 1, 3) are pooled in pairs to (1, 2)
    Reference(TWO, Inputs([line(0.0, 2.0, 1.0, 3.0), line(3.0, 4.0)], [line(2.0, 0.0), line(1.0, 1.0)]), 4.5**2),
    # a second channel below, (0, 1) against (2, 2): 2 against 2, so the mean over two entries halves
    Reference(
        TWO,
        Inputs(
            [rows([1.0, 2.0], [0.0, 1.0]).reshape(1, 2, 1, 2), line(3.0, 4.0)],
            [rows([2.0, 0.0], [2.0, 2.0]).reshape(1, 2, 1, 2), line(1.0, 1.0)],
        ),
        4.5**2 / 2,
    ),
    # a third layer (1, 0) against (2, 2): (3 * 1 + 4 * 0) / 2 = 1.5 against 2 adds .25
    Reference(
        THREE,
        Inputs([line(1.0, 2.0), line(3.0, 4.0), line(1.0, 0.0)], [line(2.0, 0.0), line(1.0, 1.0), line(2.0, 2.0)]),
        4.5**2 + 0.25,
    ),
)
MUTANTS = (
    Mutant("sum over positions", " / bottom.shape[2]", ""),
    Mutant("the paper's sum over entries", "F.mse_loss(student, teacher)", "(student - teacher).square().sum()"),
    Mutant(
        "every layer to the last", "pairwise(student_maps)", "[(one, student_maps[-1]) for one in student_maps[:-1]]"
    ),
    Mutant("the levels alone", "wide(top @ bottom.mT / bottom.shape[2])", "0.0 * wide(top @ bottom.mT)"),
    Mutant("forget a level", "(bottom_level + bottom_means)", "bottom_means"),
    Mutant("let the gradient reach the teacher", "@torch.no_grad()", ""),
    Mutant("detach the student", "projector(features) for", "projector(features.detach() + 0 * features) for"),
)


def by_function(component: DistillationLoss, inputs: Inputs) -> Tensor:
    assert isinstance(component, FSPLoss)
    student_maps = [p(s) for p, s in zip(component.projectors, inputs.students, strict=True)]
    flows = zip(pairwise(student_maps), pairwise(inputs.teachers), strict=True)
    return sum((fsp_loss(*s, *t) for s, t in flows), torch.zeros((), dtype=torch.float64))


FSP = Case(
    "flow",
    FSPLoss,
    lambda: Inputs(
        [random(4, 2, 4, 3, seed=1), random(4, 3, 2, 3, seed=2)],
        [random(4, 2, 4, 3, seed=3), random(4, 3, 2, 3, seed=4)],
    ),
    TWO,
    fsp_loss,
    by_function,
    REFERENCES,
    MUTANTS,
    extreme=False,  # at 1e4 the true gradient is 1e12, which float16 cannot hold; test_flow.py has the rest
)
FSP_PROJECTED = Case(
    "flow-projected",
    FSPLoss,
    lambda: Inputs(
        [random(4, 2, 4, 3, seed=1), random(4, 3, 2, 3, seed=2), random(4, 3, 2, 2, seed=5)],
        [random(4, 5, 4, 3, seed=3), random(4, 4, 2, 3, seed=4), random(4, 3, 1, 2, seed=6)],
    ),
    THREE,
    fsp_loss,
    by_function,
    REFERENCES,
    zero_at_match=False,
    extreme=False,
)

CASES = (FSP, FSP_PROJECTED)
HELPERS = frozenset({"fsp_matrix"})
