"""The cases of hidden states."""

import torch
from torch import Tensor

from lightning_kd.functional import hidden_state_loss
from lightning_kd.losses import DistillationLoss, HiddenStateLoss, pairs
from lightning_kd.projectors import IdentityProjector, TokenProjector
from tests.losses.case import Case, Inputs, Mutant, Reference, random, rows

LAYERS = {"student": "a", "teacher": "b"}
COSINE = {**LAYERS, "kind": "cosine"}
REFERENCES = (
    # ((1-3)^2 + (-2-1)^2 + 0 + (4-0)^2) / 4
    Reference(LAYERS, Inputs(rows([1.0, -2.0], [5.0, 4.0]), rows([3.0, 1.0], [5.0, 0.0])), 7.25),
    # 1 - 3/5 for one token of two, and 1 + 1 for the other
    Reference(COSINE, Inputs(rows([3.0, 4.0], [0.0, 2.0]), rows([7.0, 0.0], [0.0, -1.0])), 1.2),
    # 1 - 0 for a vector without a direction
    Reference(COSINE, Inputs(rows([0.0, 0.0], [3.0, 4.0]), rows([7.0, 0.0], [7.0, 0.0])), (1.0 + 0.4) / 2),
    # a map of two positions, channels first
    Reference(
        COSINE,
        Inputs(rows([3.0, 0.0, 4.0, 2.0]).reshape(1, 2, 1, 2), rows([7.0, 0.0, 0.0, -1.0]).reshape(1, 2, 1, 2)),
        1.2,
    ),
    # two pairs, 4 and 9, are added
    Reference(
        {"student": ["a", "b"], "teacher": ["c", "d"]},
        Inputs([rows([1.0]), rows([2.0])], [rows([3.0]), rows([5.0])]),
        13.0,
    ),
    # a projector W = (2, -1), offset 1: 2 * 3 - 1 * 4 + 1 = 3 against 5
    Reference(
        LAYERS,
        Inputs(rows([3.0, 4.0]), rows([5.0])),
        4.0,
        {"projectors.0.linear.weight": rows([2.0, -1.0]), "projectors.0.linear.bias": torch.ones(1).double()},
    ),
)
MUTANTS = (
    Mutant("sum over the channels", ".square().mean(-1)", ".square().sum(-1)"),
    Mutant("absolute distance", ".square().mean(-1)", ".abs().mean(-1)"),
    Mutant("no unit length", "unit(teacher, -1)", "teacher"),
    Mutant("only one minus", "1 - (unit(student", "0 - (unit(student"),
    Mutant(
        "the channels of a map as positions", "projected.movedim(1, -1), teacher.movedim(1, -1)", "projected, teacher"
    ),
    Mutant("mean over pairs", "return add_up(values)", "return add_up(values) / len(values)", pairs),
    Mutant("let the gradient reach the teacher", "teacher.detach()", "teacher"),
)


def by_function(component: DistillationLoss, inputs: Inputs) -> Tensor:
    assert isinstance(component, HiddenStateLoss)
    triples = zip(component.projectors, inputs.students, inputs.teachers, strict=True)
    values = (hidden_state_loss(p(s), t, kind=component.kind) for p, s, t in triples)
    return sum(values, torch.zeros((), dtype=torch.float64))


def case(name: str, width: int, **options: object) -> Case:
    return Case(
        name,
        HiddenStateLoss,
        lambda: Inputs(random(4, 3, 2, seed=1), random(4, 3, width, seed=2)),
        {**LAYERS, **options},
        hidden_state_loss,
        by_function,
        REFERENCES,
        MUTANTS if name == "hidden" else (),
        bad_calls=(
            (random(4, 3, 2, seed=1), random(4, 3, 5, seed=2)),
            (random(4, 3, 2, seed=1), random(4, 4, 2, seed=2)),
        ),
        bad_builds=(((4, 3, 2), (4, 4, 2)), ((4, 3), (4, 3, 3)), ((4, 3, 2, 2), (4, 3, 3, 3)), ((8,), (8,))),
        match_options={"projector": IdentityProjector()},
    )


CASES = (
    case("hidden", 2),
    case("hidden-cosine", 2, kind="cosine"),
    case("hidden-wider", 5),
    case("hidden-projected", 2, projector=TokenProjector(bias=False)),
)
