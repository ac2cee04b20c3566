"""The cases of decoupled distillation (DKD)."""

import math

import torch
from torch import Tensor

from lightning_kd.functional import dkd_loss
from lightning_kd.losses import DistillationLoss, DKDLoss
from tests.losses.case import Case, Inputs, Mutant, Reference, random, rows
from tests.losses.logits.cases.kd import LN3, QUARTERS

# Weights (4, 3, 1) of three classes and the first as target: (1/2, 1/2) against (1/3, 2/3) of a student that knows
# nothing, and (3/4, 1/4) against (1/2, 1/2) for the others.
DKD_TEACHER = [math.log(4.0), LN3, 0.0]
TARGET_PART = 0.5 * math.log(1.5) + 0.5 * math.log(0.75)
ONCE = {"temperature": 1.0}


def labels(*ids: int) -> dict[str, Tensor]:
    return {"target": torch.tensor(ids)}


DKD_REFERENCES = (
    Reference({**ONCE, "beta": 2.0}, Inputs(rows([0.0] * 3), rows(DKD_TEACHER), labels(0)), TARGET_PART + 2 * QUARTERS),
    # at T = 2 from twice the logits, in one of two samples that have a label, another alike, a third without a label
    Reference(
        {"temperature": 2.0, "alpha": 3.0, "beta": 0.5},
        Inputs(
            rows([0.0] * 3, [1.0, 5.0, 2.0], [7.0, 0.0, 0.0]),
            rows([2 * z for z in DKD_TEACHER], [1.0, 5.0, 2.0], [0.0, 0.0, 1.0]),
            labels(0, 2, -100),
        ),
        4 * (3 * TARGET_PART + 0.5 * QUARTERS) / 2,
    ),
    # two positions of one sample, classes on axis 1
    Reference(
        {**ONCE, "ignore_index": 255},
        Inputs(
            torch.stack([rows([0.0] * 3), rows([1.0, 0.0, 2.0])], dim=2).reshape(1, 3, 1, 2),
            torch.stack([rows(DKD_TEACHER), rows([0.0, 0.0, 9.0])], dim=2).reshape(1, 3, 1, 2),
            {"target": torch.tensor([[[0, 255]]])},
        ),
        TARGET_PART + 8 * QUARTERS,
    ),
    # two classes: the target against the other, and nothing more
    Reference(ONCE, Inputs(rows([0.0, 0.0]), rows([LN3, 0.0]), labels(1)), QUARTERS),
)
DKD_MUTANTS = (
    Mutant(
        "swap the two distributions",
        "F.kl_div(student_others, teacher_others",
        "F.kl_div(teacher_others, student_others",
    ),
    Mutant("drop T^2", " * temperature**2", ""),
    Mutant("the target among the others", "logits.scatter(1, ids, torch.finfo(logits.dtype).min / 2)", "logits"),
    Mutant("swap the factors", "alpha * of_target + beta * of_others", "beta * of_target + alpha * of_others"),
    Mutant("the others as in plain KD", "beta * of_others", "beta * (-teacher_odds).sigmoid() * of_others"),
    Mutant("the target alone", "return yes + no", "return yes"),
    Mutant(
        "count what has no label",
        "mean_over_labelled(divergences, labelled)",
        "divergences.mean()",
    ),
    Mutant("forget the temperature of the teacher", "teacher / temperature", "teacher"),
    Mutant("let the gradient reach the teacher", "teacher_logits.detach()", "teacher_logits"),
    Mutant("detach the student", "upcast(student_logits)", "upcast(student_logits.detach()) + 0 * student_logits"),
)


def dkd_by_function(component: DistillationLoss, inputs: Inputs) -> Tensor:
    assert isinstance(component, DKDLoss)
    options = {name: getattr(component, name) for name in ("alpha", "beta", "temperature", "ignore_index")}
    return dkd_loss(inputs.students[0], inputs.teachers[0], inputs.extra["target"], **options)


def dkd(name: str, *shape: int) -> Case:
    target = torch.arange(math.prod(shape) // shape[1]).reshape(shape[0], *shape[2:]) % shape[1]
    return Case(
        name,
        DKDLoss,
        lambda: Inputs(random(*shape, seed=8), random(*shape, seed=9), {"target": target}),
        {"temperature": 2.0, "beta": 3.0},
        dkd_loss,
        dkd_by_function,
        DKD_REFERENCES,
        DKD_MUTANTS,
        bad_calls=((random(*shape, seed=1), random(*shape[:1], 8, *shape[2:], seed=2)),),
        bad_builds=(((8, 10), (8, 100)), ((8, 3, 10), (8, 3, 10)), ((8,), (8,))),
    )


CASES = (dkd("dkd", 4, 5), dkd("dkd-dense", 4, 3, 2, 2))
