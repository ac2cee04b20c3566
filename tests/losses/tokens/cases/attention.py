"""The cases of attention matrices."""

import math

import torch
from torch import Tensor

from lightning_kd.functional import attention_matrix_loss
from lightning_kd.losses import AttentionMatrixLoss, DistillationLoss
from lightning_kd.losses.tokens import sentences
from tests.losses.case import Case, Inputs, Mutant, Reference, random, rows

LAYERS = {"student": "a", "teacher": "b"}
LN3 = math.log(3.0)
QUARTERS = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)  # (1/2, 1/2) against (3/4, 1/4)


def head(*values: list[float]) -> Tensor:
    """One head of one sentence."""
    return rows(*values)[None, None]


# The second token is padding; the third sees the first with 3/4 in the teacher.
FIRST_AND_LAST = {"mask": torch.tensor([[1, 0, 1]])}
THREE = Inputs(
    head([0.0, 5.0, 0.0], [1.0, 1.0, 1.0], [0.0, 5.0, 0.0]),
    head([0.0, 9.0, 0.0], [2.0, 3.0, 4.0], [LN3, 9.0, 0.0]),
    FIRST_AND_LAST,
)
REFERENCES = (
    # (1 + 9 + 4 + 0) / 4; the key at -10000 counts as 0
    Reference(LAYERS, Inputs(head([0.0, 0.0], [2.0, 0.0]), head([1.0, 3.0], [0.0, -1e4])), 3.5),
    Reference(
        {**LAYERS, "kind": "probabilities"}, Inputs(head([0.5, 0.5], [0.5, 0.5]), head([1.0, 0.0], [0.5, 0.5])), 0.125
    ),
    Reference({**LAYERS, "kind": "scores_kl"}, THREE, QUARTERS / 2),
    Reference({**LAYERS, "kind": "scores"}, THREE, LN3**2 / 4),
    Reference(
        {**LAYERS, "kind": "probabilities_kl"},
        Inputs(head([0.5, 0.5], [1.0, 0.0]), head([0.75, 0.25], [1.0, 0.0])),
        QUARTERS / 2,
    ),
    # the teacher's two heads (3/4, 1/4) and (1/2, 1/2) are (5/8, 3/8) in the mean
    Reference(
        {**LAYERS, "kind": "scores_kl", "heads": "mean"},
        Inputs(head([0.0, 0.0]), torch.cat([head([LN3, 0.0]), head([0.0, 0.0])], 1)),
        0.625 * math.log(1.25) + 0.375 * math.log(0.75),
    ),
    Reference(
        {**LAYERS, "heads": "mean"}, Inputs(head([0.0, 0.0]), torch.cat([head([2.0, 0.0]), head([4.0, 2.0])], 1)), 5.0
    ),
    # one sentence has one token and the distance 4, the other two and the distance 1: (4 + 1) / 2
    Reference(
        {**LAYERS, "reduction": "sentences"},
        Inputs(
            torch.zeros(2, 1, 2, 2, dtype=torch.float64),
            torch.tensor([[[[2.0, 9.0], [9.0, 9.0]]], [[[1.0, 1.0], [1.0, 1.0]]]], dtype=torch.float64),
            {"mask": torch.tensor([[1, 0], [1, 1]])},
        ),
        2.5,
    ),
)
MUTANTS = (
    Mutant("keep the masked keys", "torch.where(scores <= _MASKED, 0.0, scores)", "scores"),
    Mutant("TextBrewer's threshold", "_MASKED = -100.0", "_MASKED = 1.5"),
    Mutant("sum over heads and keys", "(ours - theirs).square()", "(ours - theirs).square() * ours.shape[-1]"),
    Mutant("padded keys take their share", "attention if keys is None else", "attention if True else"),
    Mutant("swap the two", "divergence(log_p, log_q)", "divergence(log_q, log_p)"),
    Mutant(
        "the mean of logarithms",
        "shares.logsumexp(1, keepdim=True) - math.log(shares.shape[1])",
        "shares.mean(1, keepdim=True)",
    ),
    Mutant("all tokens alike", 'if reduction == "tokens"', "if True", sentences),
    Mutant("padding counts", "real.sum().clamp_min(1)", "real.numel()", sentences),
    Mutant("let the gradient reach the teacher", "teacher.detach()", "teacher"),
)


def by_function(component: DistillationLoss, inputs: Inputs) -> Tensor:
    assert isinstance(component, AttentionMatrixLoss)
    options = {name: getattr(component, name) for name in ("kind", "heads", "reduction")}
    values = [attention_matrix_loss(s, t, **options) for s, t in zip(inputs.students, inputs.teachers, strict=True)]
    return sum(values, torch.zeros((), dtype=torch.float64))


def case(name: str, *, softmax: bool = False, **options: object) -> Case:
    def inputs() -> Inputs:
        scores = [random(4, count, 3, 3, seed=seed) for count, seed in ((2, 1), (2, 2))]
        return Inputs(*(one.softmax(-1) if softmax else one for one in scores))

    return Case(
        name,
        AttentionMatrixLoss,
        inputs,
        {**LAYERS, **options},
        attention_matrix_loss,
        by_function,
        REFERENCES,
        MUTANTS if name == "attention" else (),
        bad_calls=(
            (random(4, 2, 3, 3, seed=1), random(4, 3, 3, 3, seed=2)),
            (random(4, 2, 3, 3, seed=1), random(4, 2, 4, 4, seed=2)),
            (random(4, 3, 3, seed=1), random(4, 3, 3, seed=2)),
        ),
        bad_builds=(((4, 2, 3, 3), (4, 2, 4, 4)), ((4, 3, 3), (4, 3, 3))),
        zero_at_match=True,
        extreme=not softmax,
    )


CASES = (
    case("attention"),
    case("attention-sentences", reduction="sentences"),
    case("attention-kl", kind="scores_kl"),
    case("attention-probabilities", kind="probabilities", softmax=True),
)
