"""The cases of token distillation."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from lightning_kd.functional import token_kd_loss
from lightning_kd.losses import DistillationLoss, TokenKDLoss
from lightning_kd.losses.tokens import dense, divergences, selection
from tests.losses.case import Case, Inputs, Mutant, Reference, random, rows

LN3 = math.log(3.0)
# (1/2, 1/2) of the student against (3/4, 1/4): 3/4 ln(3/2) + 1/4 ln(1/2).
QUARTERS = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
BACK = 0.5 * math.log(2.0 / 3.0) + 0.5 * math.log(2.0)
EVEN, TEACHER, MIRROR = [0.0, 0.0], [LN3, 0.0], [0.0, LN3]
# p = (3/4, 1/4) against m = (3/8, 5/8)
TO_MIXTURE = 0.75 * math.log(2.0) + 0.25 * math.log(0.4)
ALIGNED = {"shift": False}


def one_token(student: list[float], teacher: list[float]) -> Inputs:
    """A token beside one that is no target."""
    return Inputs(
        torch.stack([rows(student), rows([9.0, 0.0])], 1),
        torch.stack([rows(teacher), rows([0.0, 9.0])], 1),
        {"target": torch.tensor([[1, -100]])},
    )


REFERENCES = (
    Reference({}, Inputs(rows(EVEN), rows(TEACHER)), QUARTERS),
    Reference(ALIGNED, one_token(EVEN, TEACHER), QUARTERS),
    # the label of the second token decides over the first position, and the last position has nothing to predict
    Reference(
        {"shift": True},
        Inputs(
            torch.stack([rows(EVEN), rows([9.0, 0.0]), rows([9.0, 0.0])], 1),
            torch.stack([rows(TEACHER), rows([0.0, 9.0]), rows([0.0, 9.0])], 1),
            {"target": torch.tensor([[-100, 1, -100]])},
        ),
        QUARTERS,
    ),
    # the mask closes the second row; another id is no target; T = 2 from twice the logits, two tokens of which one
    # has nothing to learn
    Reference(
        {"shift": False, "temperature": 2.0, "temperature_squared": True, "ignore_index": 7},
        Inputs(
            torch.stack([rows(EVEN, EVEN), rows([5.0, 1.0], EVEN), rows([5.0, 1.0], EVEN)], 1),
            torch.stack([rows([2 * LN3, 0.0], TEACHER), rows([5.0, 1.0], MIRROR), rows([0.0, 1.0], MIRROR)], 1),
            {"target": torch.tensor([[0, 1, 7], [0, 1, 1]]), "mask": torch.tensor([[1, 1, 1], [0, 0, 0]])},
        ),
        4 * QUARTERS / 2,
    ),
    Reference({"divergence": "reverse_kl", **ALIGNED}, one_token(EVEN, TEACHER), BACK),
    Reference(
        {"divergence": "jsd", "beta": 0.25, **ALIGNED},
        one_token(MIRROR, TEACHER),
        0.25 * TO_MIXTURE + 0.75 * (0.25 * math.log(2.0 / 3.0) + 0.75 * math.log(1.2)),
    ),
    Reference({"divergence": "skew_forward_kl", "alpha": 0.25, **ALIGNED}, one_token(MIRROR, TEACHER), TO_MIXTURE),
    # q = (1/4, 3/4) against 3/4 p + 1/4 q = (5/8, 3/8): the mirror image
    Reference({"divergence": "skew_reverse_kl", "alpha": 0.25, **ALIGNED}, one_token(MIRROR, TEACHER), TO_MIXTURE),
    Reference(
        {"divergence": "symmetric_kl", "ratio": 0.25, **ALIGNED},
        one_token(EVEN, TEACHER),
        0.25 * QUARTERS + 0.75 * BACK,
    ),
    Reference({"divergence": "total_variation", **ALIGNED}, one_token(EVEN, TEACHER), 0.25),
    # half the squared distance: (1/16 + 1/16) / 2
    Reference({"divergence": "alpha_beta", "alpha": 1.0, "beta": 1.0, **ALIGNED}, one_token(EVEN, TEACHER), 1 / 16),
    # half the squared log-ratios
    Reference(
        {"divergence": "alpha_beta", "alpha": 0.0, "beta": 0.0, **ALIGNED},
        one_token(EVEN, TEACHER),
        (math.log(1.5) ** 2 + math.log(2.0) ** 2) / 2,
    ),
    # and twice the cross entropy of the second token: ln 2 each
    Reference({"cross_entropy": 2.0, **ALIGNED}, one_token(EVEN, TEACHER), QUARTERS + 2 * math.log(2.0)),
    # the label is that of the token after: the first, of probability 1/4
    Reference(
        {"cross_entropy": 1.0, "shift": True},
        Inputs(
            torch.stack([rows(MIRROR), rows(EVEN)], 1),
            torch.stack([rows(MIRROR), rows([9.0, 0.0])], 1),
            {"target": torch.tensor([[1, 0]])},
        ),
        math.log(4.0),
    ),
    # a token without a label counts, one of padding does not: two of three, of which one has nothing to learn
    Reference(
        {"tokens": "mask", **ALIGNED},
        Inputs(
            torch.stack([rows(EVEN), rows([5.0, 1.0]), rows([9.0, 0.0])], 1),
            torch.stack([rows(TEACHER), rows([5.0, 1.0]), rows([0.0, 9.0])], 1),
            {"target": torch.tensor([[-100, 1, 1]]), "mask": torch.tensor([[1, 1, 0]])},
        ),
        QUARTERS / 2,
    ),
    # the teacher's third token is cut off
    Reference({"vocab": "truncate"}, Inputs(rows(MIRROR), rows([*TEACHER, 50.0])), LN3 / 2),
)
MUTANTS = (
    Mutant("drop T^2", " * temperature**2", ""),
    Mutant("no labels", '{"labels": target', '{"labels": None'),
    Mutant("labels in spite of the option", 'if self.tokens == "mask":', "if False:"),
    Mutant("no mask", '"mask": mask, "starts"', '"mask": None, "starts"'),
    Mutant("always -100", "self.ignore_index if target is not None else IGNORE_INDEX", "IGNORE_INDEX"),
    Mutant("never shift", "shift = len(positions) > 1 and", "shift = False and"),
    Mutant("divide by all positions", "number(counts, positions).to", "number(None, positions).to"),
    Mutant("keep the whole vocabulary", "[..., :size], teacher", "[..., :size] * 2, teacher"),
    Mutant(
        "the label at its place", "predicted(self._labels(target), shift,", "predicted(self._labels(target), False,"
    ),
    Mutant("no weight of the labels", "loss + weight * task", "loss + task"),
    Mutant("labels at their own position", "target[..., 1:]", "target[..., :-1]", selection),
    Mutant(
        "forget the teacher's temperature",
        "log_probabilities(teacher, temperature)",
        "log_probabilities(teacher, 1.0)",
        dense,
    ),
    Mutant(
        "swap the two distributions",
        '"forward_kl": _forward_kl, "reverse_kl": _reverse_kl',
        '"forward_kl": _reverse_kl, "reverse_kl": _forward_kl',
        divergences,
    ),
    Mutant(
        "the cross entropy",
        "values = teacher.sub_(student).mul_(p).sum(-1)",
        "values = -(p * student).sum(-1)",
        divergences,
    ),
    Mutant(
        "beta of the student",
        "ratio.exp().mul_(beta).add_(1 - beta)",
        "ratio.exp().mul_(1 - beta).add_(beta)",
        divergences,
    ),
    Mutant("the whole variation", "values = teacher.abs().sum(-1) / 2", "values = teacher.abs().sum(-1)", divergences),
    Mutant(
        "alpha of the student",
        "ratio.exp().mul_(alpha).add_(1 - alpha)",
        "ratio.exp().mul_(1 - alpha).add_(alpha)",
        divergences,
    ),
    Mutant(
        "alpha of the teacher",
        ".exp_().mul_(1 - alpha).add_(alpha)",
        ".exp_().mul_(alpha).add_(1 - alpha)",
        divergences,
    ),
    Mutant(
        "ratio of the reverse part", "(1 - ratio) * reverse - ratio *", "ratio * reverse - (1 - ratio) *", divergences
    ),
    Mutant("the limit with a single alpha", "ratio.square() / 2", "ratio.square()", divergences),
)


def by_function(component: DistillationLoss, inputs: Inputs) -> Tensor:
    assert isinstance(component, TokenKDLoss)
    names = ("divergence", "alpha", "beta", "ratio", "temperature", "temperature_squared", "shift", "ignore_index")
    options = {name: getattr(component, name) for name in names}
    labels, mask = inputs.extra["target"], inputs.extra["mask"]
    loss = token_kd_loss(inputs.students[0], inputs.teachers[0], labels=labels, mask=mask, **options)
    counts = (labels != -100) & mask.bool()
    return loss + component.cross_entropy * cross_entropy(inputs.students[0][counts], labels[counts])


def case(name: str, match_options: Mapping[str, object] | None = None, **options: object) -> Case:
    # three of five tokens in each row
    labels = torch.tensor([[1, 2, -100, 3, -100], [-100, 1, 0, 4, -100]] * 2)
    mask = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]] * 2)
    return Case(
        name,
        TokenKDLoss,
        lambda: Inputs(random(4, 5, 6, seed=1), random(4, 5, 6, seed=2), {"target": labels, "mask": mask}),
        {"shift": False, **options},
        token_kd_loss,
        by_function,
        REFERENCES,
        MUTANTS if name == "token-kd" else (),
        bad_calls=(
            (random(4, 5, 6, seed=1), random(4, 5, 7, seed=2)),
            (random(4, 5, 6, seed=1), random(4, 4, 6, seed=2)),
        ),
        bad_builds=(((4, 5, 6), (4, 5, 7)), ((4, 5, 6), (4, 6, 6)), ((4, 6), (4, 5, 6)), ((4, 6, 3, 3), (4, 6, 3, 3))),
        match_options=match_options or {},
    )


CASES = (
    case("token-kd", temperature=2.0, temperature_squared=True),
    case("token-with-labels", cross_entropy=0.5, match_options={"cross_entropy": 0.0}),
    case("token-reverse-kl", divergence="reverse_kl"),
    case("token-jsd", divergence="jsd", beta=0.3),
    case("token-skew-forward-kl", divergence="skew_forward_kl"),
    case("token-skew-reverse-kl", divergence="skew_reverse_kl"),
    case("token-symmetric-kl", divergence="symmetric_kl", ratio=0.3),
    case("token-total-variation", divergence="total_variation"),
    case("token-alpha-beta", divergence="alpha_beta", alpha=0.6, beta=0.9),
)
