"""The cases of KD with a temperature for each sample."""

import math

import torch
from torch import Tensor

from lightning_kd.functional import kd_loss
from lightning_kd.losses import AdaptiveTemperature, DistillationLoss, KDLoss
from tests.losses.case import Case, Inputs, Mutant, Reference, random, rows
from tests.losses.logits.cases.kd import LN3, QUARTERS

# (9, 1) / 10 is .8 of the way from an undecided teacher to a certain one: T = 1 + 1.25 * .8 = 2, and leaves (3, 1) / 4.
CONFIDENT = {"temperature": AdaptiveTemperature("confidence", low=1.0, high=2.25)}
# Right: T = 2, wrong: T = 3, no label: T = 2.5; each leaves (3, 1) / 4.
CORRECT = {"temperature": AdaptiveTemperature("correctness", low=2.0, high=3.0)}
KD_ADAPTIVE_REFERENCES = (
    Reference(CONFIDENT, Inputs(rows([0.0, 0.0]), rows([2 * LN3, 0.0])), 4 * QUARTERS),
    # the second is undecided, T = 1: the divergence of (e, 1) / (e + 1) from (1, 1) / 2
    Reference(
        CONFIDENT,
        Inputs(rows([0.0, 0.0], [1.0, 0.0]), rows([2 * LN3, 0.0], [0.0, 0.0])),
        (4 * QUARTERS + math.log((math.e + 1) / 2) - 0.5) / 2,
    ),
    Reference(
        CORRECT,
        Inputs(
            rows([0.0, 0.0], [0.0, 0.0], [0.0, 0.0]),
            rows([2 * LN3, 0.0], [3 * LN3, 0.0], [2.5 * LN3, 0.0]),
            {"target": torch.tensor([0, 1, -100])},
        ),
        (4 + 9 + 6.25) / 3 * QUARTERS,
    ),
)
KD_ADAPTIVE_MUTANTS = (
    Mutant("T instead of T^2", "temperature.square()", "temperature"),
    Mutant("sum over the batch", "temperature.square()).mean()", "temperature.square()).sum()"),
    Mutant(
        "T^2 of the batch", "(divergence * temperature.square()).mean()", "divergence.mean() * (temperature**2).mean()"
    ),
    Mutant(
        "mean over the classes", 'reduction="none", log_target=True).sum(', 'reduction="none", log_target=True).mean('
    ),
)


def kd_adaptive_by_function(component: DistillationLoss, inputs: Inputs) -> Tensor:
    assert isinstance(component, KDLoss)
    assert isinstance(component.temperature, AdaptiveTemperature)
    temperature = component.temperature(inputs.teachers[0], inputs.extra.get("target"))
    return kd_loss(inputs.students[0], inputs.teachers[0], temperature=temperature)


def kd_adaptive(by: str, teacher: Tensor, **extra: Tensor) -> Case:
    return Case(
        f"kd-by-{by}-{teacher.ndim}d",
        KDLoss,
        lambda: Inputs(random(*teacher.shape, seed=7), teacher, extra),
        {"temperature": AdaptiveTemperature(by, low=2.0, high=5.0)},  # type: ignore[arg-type]
        kd_loss,
        kd_adaptive_by_function,
        KD_ADAPTIVE_REFERENCES,
        KD_ADAPTIVE_MUTANTS,
    )


CASES = (
    kd_adaptive("confidence", 2 * random(4, 5, seed=12)),
    kd_adaptive("entropy", 2 * random(4, 3, 2, 1, seed=13)),
    kd_adaptive("correctness", random(4, 5, seed=14), target=torch.tensor([3, 0, 1, -100])),
)
