"""The cases of self-distillation inside one network (BYOT)."""

import math

import torch
from torch import Tensor

from lightning_kd.functional import byot_loss
from lightning_kd.losses import BYOTLoss, DistillationLoss
from tests.losses.case import Case, Inputs, Mutant, Reference, random, rows

TWO = {"student": ["a", "b"]}
THREE = {"student": ["a", "b", "c"]}


def classifier(place: int) -> dict[str, Tensor]:
    """Weights that make the features 3 and 5, and the logits (0, 0) and (2, 0), out of ``EARLY``.

    The norms add 4000 to keep what follows positive, the middle convolution takes every second position:
    (1, 5), (7, 3) thousand, of mean 4 and variance 5, and the last norm divides by a thousand.
    """
    norm, name = {1: (1000.0, 4000.0), 4: (1000.0, 4000.0), 7: (1.0, 4.0)}, f"classifiers.{place}"
    one = {i: torch.ones(1, 1, 1, 1, dtype=torch.float64) for i in (0, 6)}
    one[3] = rows([1.0, 0.0]).reshape(1, 1, 1, 2)
    return {
        **{f"{name}.bottleneck.{i}.weight": weight for i, weight in one.items()},
        **{f"{name}.bottleneck.{i}.weight": rows([scale * math.sqrt(5.0)])[0] for i, (scale, _) in norm.items()},
        **{f"{name}.bottleneck.{i}.bias": rows([offset])[0] for i, (_, offset) in norm.items()},
        f"{name}.linear.weight": rows([1.0], [0.0]),
        f"{name}.linear.bias": rows([-3.0, 0.0])[0],
    }


EARLY = 1000 * rows([-3.0, -1.0, 1.0, 3.0], [3.0, 1.0, -1.0, -3.0]).reshape(2, 1, 1, 4)
LAST = rows([1.0, 2.0], [4.0, 8.0]).reshape(2, 1, 1, 2)
IMITATED_1, IMITATED_2 = frozenset({1}), frozenset({2})


def extra(temperature: float, *target: int) -> dict[str, Tensor]:
    """Targets, and deepest logits that are (3 / 4, 1 / 4) at the temperature for the first sample."""
    logits = rows([temperature * math.log(3.0), 0.0], [2.0, 0.0])
    return {"target": torch.tensor(target), "student_logits": logits}


# logits (0, 0) of class 0 and (2, 0) of class 1
LABELS = (math.log(2.0), math.log(1.0 + math.exp(2.0)))
# (3 / 4, 1 / 4) against (1 / 2, 1 / 2), and nothing for the second sample, whose logits are the deepest's
DIVERGENCE = (0.75 * math.log(1.5) + 0.25 * math.log(0.5)) / 2
# features 3 and 5 against the averages 1.5 and 6
HINT = (1.5**2 + 1.0) / 2
OPTIONS = {"temperature": 2.0, "alpha": 0.25, "hint_weight": 0.5}
REFERENCES = (
    Reference(
        {**TWO, **OPTIONS},
        Inputs([EARLY, LAST], None, extra(2.0, 0, 1), IMITATED_1),
        0.75 * sum(LABELS) / 2 + 0.25 * 4 * DIVERGENCE + 0.5 * HINT,
        classifier(0),
    ),
    # the paper's constants
    Reference(
        TWO,
        Inputs([EARLY, LAST], None, extra(3.0, 0, 1), IMITATED_1),
        0.7 * sum(LABELS) / 2 + 0.3 * 9 * DIVERGENCE + 0.03 * HINT,
        classifier(0),
    ),
    # the first sample has no label
    Reference(
        {**TWO, **OPTIONS},
        Inputs([EARLY, LAST], None, extra(2.0, -100, 1), IMITATED_1),
        0.75 * LABELS[1] + 0.25 * 4 * DIVERGENCE + 0.5 * HINT,
        classifier(0),
    ),
    # neither has
    Reference(
        {**TWO, **OPTIONS},
        Inputs([EARLY, LAST], None, extra(2.0, -100, -100), IMITATED_1),
        0.25 * 4 * DIVERGENCE + 0.5 * HINT,
        classifier(0),
    ),
    # two early classifiers
    Reference(
        {**THREE, **OPTIONS},
        Inputs([EARLY, EARLY, LAST], None, extra(2.0, 0, 1), IMITATED_2),
        2 * (0.75 * sum(LABELS) / 2 + 0.25 * 4 * DIVERGENCE + 0.5 * HINT),
        classifier(0) | classifier(1),
    ),
)
MUTANTS = (
    Mutant("temperature not squared", "* temperature**2", "* temperature"),
    Mutant(
        "shares swapped", "(1.0 - alpha) * label + alpha * divergence", "alpha * label + (1.0 - alpha) * divergence"
    ),
    Mutant("divergence the wrong way", "F.kl_div(soft, softer", "F.kl_div(softer, soft"),
    Mutant("sum over the batch", ' reduction="batchmean"', ' reduction="sum"'),
    Mutant("distance not squared", ".square().sum() / len(features)", ".square().sum().sqrt()"),
    Mutant("sum of distances", ".square().sum() / len(features)", ".square().sum()"),
    Mutant("label the unlabelled", "_of_labelled(logits, target)", "_of_labelled(logits, target.clamp_min(0))"),
    Mutant("mean over the classifiers", "return add_up(losses)", "return add_up(losses) / len(losses)"),
    Mutant("the largest position", "upcast(last.detach()).mean((2, 3))", "upcast(last.detach()).amax((2, 3))"),
    Mutant("detach the student", "classifier(maps)", "classifier(maps.detach() + 0 * maps)"),
)


def by_function(component: DistillationLoss, inputs: Inputs) -> Tensor:
    assert isinstance(component, BYOTLoss)
    *early, last = inputs.students
    total = torch.zeros((), dtype=torch.float64)
    for head, maps in zip(component.classifiers, early, strict=True):
        logits, features = head(maps)
        options = {"alpha": component.alpha, "hint_weight": component.hint_weight, "temperature": component.temperature}
        deepest = inputs.extra["student_logits"], last.mean((2, 3))
        total = total + byot_loss(logits, features, *deepest, inputs.extra["target"], **options)
    return total


def bad(**changed: tuple[int, ...]) -> tuple[Tensor, ...]:
    shapes = {"logits": (4, 3), "features": (4, 5), "deepest": (4, 3), "last": (4, 5), "target": (4,)} | changed
    return tuple(random(*shape, seed=1) for shape in shapes.values())


BYOT = Case(
    "byot",
    BYOTLoss,
    lambda: Inputs(
        [random(4, 2, 4, 4, seed=1), random(4, 3, 5, 2, seed=2), random(4, 8, 2, 2, seed=3)],
        None,
        {"target": torch.tensor([0, 2, -100, 1]), "student_logits": random(4, 3, seed=4)},
        IMITATED_2,
    ),
    {**THREE, "temperature": 2.0, "alpha": 0.4, "hint_weight": 0.1},
    byot_loss,
    by_function,
    REFERENCES,
    MUTANTS,
    bad_calls=(
        bad(features=(4, 5, 2, 2)),
        bad(last=(4, 6)),
        bad(deepest=(4, 4)),
        bad(target=(3,)),
        bad(features=(2, 5), last=(2, 5)),
        bad(target=(4, 3)),
    ),
    bad_builds=(((8, 16), (8, 16)), ((8, 10, 16), (8, 10, 16))),
    zero_at_match=False,
    batch_statistics=True,
)

CASES = (BYOT,)
