"""The cases of hybrids."""

import math

import torch
from torch import Tensor

from lightning_kd.functional import hint_loss, hybrid_loss, kd_loss
from lightning_kd.losses import DistillationLoss, HintLoss, HybridLoss, KDLoss
from lightning_kd.losses.base import LOGITS
from lightning_kd.projectors import IdentityProjector
from tests.losses.case import Case, Inputs, Mutant, Reference, random, rows

LAYERS = (LOGITS, "a")
KD = math.tanh(0.5)  # KL of the mirror images (2, 1) and (1, 2) at temperature 1
SAMPLE = Inputs(
    [rows([2.0, 1.0]), rows([1.0, -2.0])], [rows([1.0, 2.0]), rows([3.0, 1.0])], layers=LAYERS
)  # the hint is (4 + 9) / 2


def parts() -> list[DistillationLoss]:
    return [KDLoss(1.0, weight=2.0), HintLoss("a", "a", projector=IdentityProjector(), weight=3.0)]


def options(losses: list[DistillationLoss] | None = None, **others: object) -> dict[str, object]:
    return {"losses": losses or parts(), **others}


def nested() -> list[DistillationLoss]:
    return [HybridLoss(parts(), weight=0.5), KDLoss(1.0)]


REFERENCES = (
    Reference(options(), SAMPLE, 2 * KD + 3 * 6.5),
    Reference(options(nested()), SAMPLE, 0.5 * (2 * KD + 3 * 6.5) + KD),
    # variances e^2 and e^-1: 2 (KD e^-2 + 1) + 3 (6.5 e + -1/2)
    Reference(
        options(balance="uncertainty"),
        SAMPLE,
        2 * (KD * math.exp(-2) + 1) + 3 * (6.5 * math.e - 0.5),
        {"log_variances": torch.tensor([2.0, -1.0], dtype=torch.float64)},
    ),
    # the first step divides each loss by its own size, so that the weights are what is left
    Reference(options(balance="magnitude"), SAMPLE, 5.0, tolerance=1e-6),
    # means of 1 and 2 move a half of the way to the losses' sizes
    Reference(
        options(balance="magnitude", momentum=0.5),
        SAMPLE,
        2 * KD / ((1 + KD) / 2) + 3 * 6.5 / ((2 + 6.5) / 2),
        {"means": torch.tensor([1.0, 2.0])},
        tolerance=1e-6,
    ),
)
MOVED = "self.momentum * means + (1.0 - self.momentum) * now"
MUTANTS = (
    Mutant("forget the weights", "terms = [weight * value for", "terms = [value for"),
    Mutant("forget the variance's own term", " + spread / 2)", ")"),
    Mutant("deviation for variance", "(-spread).exp()", "(-spread / 2).exp()"),
    Mutant("mean over the losses", "torch.stack(terms).sum()", "torch.stack(terms).mean()"),
    Mutant("the means of the last step", f"torch.where(means > 0, {MOVED}, now)", "torch.where(means > 0, means, now)"),
    Mutant("momentum the wrong way", MOVED, "(1.0 - self.momentum) * means + self.momentum * now / 2"),
    Mutant("the first loss twice", "self.losses[i].evaluate(step)", "self.losses[0].evaluate(step)"),
    Mutant("detach the losses", "hybrid_loss(values, w", "hybrid_loss([v.detach() + 0 * v for v in values], w"),
)


def by_function(component: DistillationLoss, inputs: Inputs) -> Tensor:
    assert isinstance(component, HybridLoss)
    step = inputs.step
    assert step.student_logits is not None
    assert step.teacher_logits is not None
    kd = kd_loss(step.student_logits, step.teacher_logits, temperature=1.0)
    values = [kd, hint_loss(step.student_features["a"], step.teacher_features["a"])]
    if component.balance == "magnitude":
        values = [value / mean for value, mean in zip(values, component.means, strict=True)]
    return hybrid_loss(values, [2.0, 3.0], component.log_variances)


def settle(component: DistillationLoss) -> None:
    """Stop the means where they are, as they are in evaluation."""
    component.eval()
    assert isinstance(component, HybridLoss)
    component.means = torch.tensor([0.5, 2.0])


def case(name: str, **others: object) -> Case:
    balance = others.get("balance")
    return Case(
        name,
        HybridLoss,
        lambda: Inputs(
            [random(4, 3, seed=1), random(4, 5, seed=2)], [random(4, 3, seed=3), random(4, 5, seed=4)], layers=LAYERS
        ),
        options(**others),
        hybrid_loss,
        by_function,
        REFERENCES,
        MUTANTS,
        zero_at_match=balance != "uncertainty",
        prepare=settle if balance == "magnitude" else None,
    )


CASES = (
    case("hybrid"),
    case("hybrid-magnitude", balance="magnitude"),
    case("hybrid-uncertainty", balance="uncertainty"),
)
