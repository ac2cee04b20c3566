"""The cases of relations of queries, keys and values (MiniLM)."""

import math

import torch
from torch import Tensor

from lightning_kd.functional import qkv_relation_loss
from lightning_kd.losses import DistillationLoss, QKVRelationLoss
from lightning_kd.losses.tokens import sentences
from tests.losses.case import Case, Inputs, Mutant, Reference, random

LAYERS = {"student": ["q", "k", "v"], "teacher": ["q", "k", "v"]}
LN3 = math.log(3.0)
QUARTERS = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)  # (1/2, 1/2) against (3/4, 1/4)
ZERO = torch.zeros(1, 2, 1, dtype=torch.float64)
ALIKE = torch.ones(1, 2, 1, dtype=torch.float64)  # all tokens alike: every relation is even


def sequence(*values: list[float]) -> Tensor:
    return torch.tensor([values], dtype=torch.float64)


ROOT = math.sqrt(LN3)
# Its relation with itself: ln 3 of the first token to itself, 0 elsewhere: (3/4, 1/4) and (1/2, 1/2).
ONE = sequence([ROOT], [0.0])
REFERENCES = (
    Reference(
        {**LAYERS, "relation_heads": 1, "relations": {"VV": 2.0}},
        Inputs([ALIKE] * 3, [sequence([5.0], [7.0]), sequence([3.0], [4.0]), ONE]),
        QUARTERS,
    ),
    # Rows of queries (ln 3, 0) and columns of keys (1, 0); the other way round both rows would see the first column.
    Reference(
        {**LAYERS, "relation_heads": 1, "relations": {"QK": 1.0, "VV": 0.5}},
        Inputs([ALIKE] * 3, [sequence([LN3], [0.0]), sequence([1.0], [0.0]), ONE]),
        1.5 * QUARTERS / 2,
    ),
    # Two relation heads of two channels, of which the second has nothing to learn; sqrt(2) scales ln 3 sqrt(2) back.
    Reference(
        {**LAYERS, "relation_heads": 2, "relations": {"QQ": 1.0}},
        Inputs(
            [torch.ones(1, 2, 4, dtype=torch.float64)] * 3,
            [sequence([ROOT * 2**0.25, 0.0, 0.0, 0.0], [0.0] * 4), *[torch.ones(1, 2, 4, dtype=torch.float64)] * 2],
        ),
        QUARTERS / 4,
    ),
    # Padding in the middle is neither a row nor a column; a sentence of one token has nothing to relate.
    Reference(
        {**LAYERS, "relation_heads": 1, "relations": {"KK": 1.0}},
        Inputs(
            [torch.ones(2, 3, 1, dtype=torch.float64)] * 3,
            [
                torch.zeros(2, 3, 1, dtype=torch.float64),
                torch.cat([sequence([ROOT], [9.0], [0.0]), sequence([1.0], [2.0], [3.0])]),
                torch.zeros(2, 3, 1, dtype=torch.float64),
            ],
            {"mask": torch.tensor([[1, 0, 1], [1, 0, 0]])},
        ),
        QUARTERS / 4,
    ),
    Reference(
        {**LAYERS, "relation_heads": 1, "relations": {"KK": 1.0}, "reduction": "tokens"},
        Inputs(
            [torch.ones(2, 2, 1, dtype=torch.float64)] * 3,
            [torch.zeros(2, 2, 1, dtype=torch.float64), torch.cat([ONE, sequence([1.0], [2.0])]), ZERO.repeat(2, 1, 1)],
            {"mask": torch.tensor([[1, 1], [1, 0]])},
        ),
        QUARTERS / 3,
    ),
)
MUTANTS = (
    Mutant("no scale", " / math.sqrt(rows.shape[-1])", ""),
    Mutant("the scale of all heads", "math.sqrt(rows.shape[-1])", "math.sqrt(rows.shape[-1] * rows.shape[1])"),
    Mutant("swap the two", "divergence(log_p, log_q)", "divergence(log_q, log_p)"),
    Mutant("sum over heads", "log_q).mean(1)", "log_q).sum(1)"),
    Mutant("no weights", "weight * mean_of_sentences", "mean_of_sentences"),
    Mutant("keys for queries", '{"Q": 0, "K": 1, "V": 2}', '{"Q": 1, "K": 0, "V": 2}'),
    Mutant("padded columns take their share", "scores = scores.masked_fill(", "scores.masked_fill("),
    Mutant("padded rows count", "tokens.clamp_min(1)).sum()", "values.shape[1]).sum()", sentences),
    Mutant("let the gradient reach the teacher", "teacher[i].detach()", "teacher[i]"),
)


def by_function(component: DistillationLoss, inputs: Inputs) -> Tensor:
    assert isinstance(component, QKVRelationLoss)
    options = {name: getattr(component, name) for name in ("relation_heads", "relations", "reduction")}
    return qkv_relation_loss(inputs.students, inputs.teachers, mask=inputs.extra.get("mask"), **options)


def case(name: str, relations: dict[str, float], reduction: str) -> Case:
    used = {one for pair in relations for one in pair}
    return Case(
        name,
        QKVRelationLoss,
        lambda: Inputs(
            [random(4, 3, 4, seed=seed) for seed in (1, 2, 3)],
            [random(4, 3, width, seed=seed) for seed, width in ((4, 8), (5, 8), (6, 2))],
            {"mask": torch.tensor([[1, 1, 0], [0, 1, 1]] * 2)},
            imitated=frozenset(place for place, one in enumerate("QKV") if one not in used),
        ),
        {**LAYERS, "relation_heads": 2, "relations": relations, "reduction": reduction},
        qkv_relation_loss,
        by_function,
        REFERENCES,
        MUTANTS if name == "qkv" else (),
        bad_builds=(((4, 3, 5), (4, 3, 4)), ((4, 3, 4), (4, 2, 4)), ((4, 4), (4, 4))),
    )


CASES = (
    case("qkv", {"QQ": 0.3, "KK": 0.3, "VV": 0.4}, "sentences"),
    case("qkv-tokens", {"QK": 1.0, "VV": 2.0}, "tokens"),
)
