"""The cases of hints (FitNets)."""

import torch
from torch import Tensor

from lightning_kd.functional import hint_loss
from lightning_kd.losses import DistillationLoss, HintLoss, pairs
from lightning_kd.projectors import ConvProjector, IdentityProjector
from tests.losses.case import Case, Inputs, Mutant, Reference, random, rows

AS_IT_IS = {"student": "a", "teacher": "b", "projector": IdentityProjector()}
HINT_REFERENCES = (
    # ((1-3)^2 + (-2-1)^2 + 0 + (4-0)^2) / 4 = (4 + 9 + 0 + 16) / 4
    Reference(AS_IT_IS, Inputs(rows([1.0, -2.0], [5.0, 4.0]), rows([3.0, 1.0], [5.0, 0.0])), 7.25),
    # The student's 1x2 map (1, 4) is pooled to 2.5; the teacher's -1 stays: 3.5^2.
    Reference(
        AS_IT_IS,
        Inputs(rows([1.0, 4.0]).reshape(1, 1, 1, 2), torch.full((1, 1, 1, 1), -1.0, dtype=torch.float64)),
        12.25,
    ),
    # Student 1x2 (1, 3), teacher 2x1 (0, 4): each is the larger along one axis, both become 2, the distance is 0.
    # With the second channel 1, 1 against 2, 2 the mean over the channels is 1/2.
    Reference(
        AS_IT_IS,
        Inputs(rows([1.0, 3.0, 1.0, 1.0]).reshape(1, 2, 1, 2), rows([0.0, 4.0, 2.0, 2.0]).reshape(1, 2, 2, 1)),
        0.5,
    ),
    # Two pairs, 4 and 9, are added.
    Reference(
        {"student": ["a", "b"], "teacher": ["c", "d"], "projector": IdentityProjector()},
        Inputs([rows([1.0]), rows([2.0])], [rows([3.0]), rows([5.0])]),
        13.0,
    ),
    # A projector W = (2, -1), offset 1: 2 * 3 - 1 * 4 + 1 = 3 against 5.
    Reference(
        {"student": "a", "teacher": "b"},
        Inputs(rows([3.0, 4.0]), rows([5.0])),
        4.0,
        {"projectors.0.linear.weight": rows([2.0, -1.0]), "projectors.0.linear.bias": torch.ones(1).double()},
    ),
)
HINT_MUTANTS = (
    Mutant("the paper's half", "return F.mse_loss(student, teacher)", "return F.mse_loss(student, teacher) / 2"),
    Mutant("sum of squares", "F.mse_loss(student, teacher)", "F.mse_loss(student, teacher, reduction='sum')"),
    Mutant("absolute distance", "F.mse_loss(", "F.l1_loss("),
    Mutant(
        "pick positions instead of pooling",
        "student, teacher = pool_to_smaller(student, teacher)",
        "student = F.interpolate(student, size=teacher.shape[2:])",
    ),
    Mutant("mean over pairs", "return add_up(values)", "return add_up(values) / len(values)", pairs),
    Mutant(
        "every pair to the first teacher",
        "self.compare(s, t, *parts)",
        "self.compare(s, pairs[0][1], *parts)",
        pairs,
    ),
    Mutant("let the gradient reach the teacher", "teacher.detach()", "teacher"),
    Mutant("detach the student", "hint_loss(projector(student)", "hint_loss(projector(student.detach() + 0 * student)"),
)


def hint_by_function(component: DistillationLoss, inputs: Inputs) -> Tensor:
    assert isinstance(component, HintLoss)
    triples = zip(component.projectors, inputs.students, inputs.teachers, strict=True)
    return sum((hint_loss(p(s), t) for p, s, t in triples), torch.zeros((), dtype=torch.float64))


HINT = Case(
    "hint",
    HintLoss,
    lambda: Inputs(random(4, 3, seed=1), random(4, 5, seed=2)),
    {"student": "a", "teacher": "b"},
    hint_loss,
    hint_by_function,
    HINT_REFERENCES,
    HINT_MUTANTS,
    bad_calls=(
        (random(4, 3, seed=1), random(2, 3, seed=2)),
        (random(4, 3, seed=1), random(4, 6, seed=2)),
        (random(4, 3, seed=1), random(4, 3, 2, 2, seed=2)),
        (random(4, 3, 5, seed=1), random(4, 2, 5, seed=2)),
        (random(4, 3, 2, 2, seed=1), random(4, 5, 2, 2, seed=2)),
    ),
    bad_builds=(
        ((8, 16), (8, 16, 4, 4)),
        ((8, 10, 16), (8, 11, 16)),
        ((8,), (8,)),
        ((8, 2, 2, 2, 2), (8, 2, 2, 2, 2)),
    ),
    match_options={"projector": IdentityProjector()},
)
HINT_MAPS = Case(
    "hint-maps",
    HintLoss,
    lambda: Inputs(
        [random(4, 3, 4, 4, seed=1), random(4, 2, 2, 4, seed=2)],
        [random(4, 5, 2, 2, seed=3), random(4, 3, 4, 2, seed=4)],
    ),
    {"student": ["a", "b"], "teacher": ["c", "d"], "projector": ConvProjector(bias=False, activation=True)},
    hint_loss,
    hint_by_function,
    HINT_REFERENCES,
    match_options={"projector": IdentityProjector()},
)
HINT_TOKENS = Case(
    "hint-tokens",
    HintLoss,
    lambda: Inputs(random(4, 3, 2, seed=1), random(4, 3, 5, seed=2)),
    {"student": "a", "teacher": "b"},
    hint_loss,
    hint_by_function,
    HINT_REFERENCES,
    match_options={"projector": IdentityProjector()},
)

CASES = (HINT, HINT_MAPS, HINT_TOKENS)
