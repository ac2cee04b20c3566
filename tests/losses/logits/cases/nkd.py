"""The cases of normalized distillation (NKD)."""

import math

import torch
from torch import Tensor

from lightning_kd.functional import nkd_loss
from lightning_kd.losses import DistillationLoss, NKDLoss
from tests.losses.case import Case, Inputs, Mutant, Reference, random, rows
from tests.losses.logits.cases.dkd import labels
from tests.losses.logits.cases.kd import LN3

# Weights (4, 3, 1) of three classes, the first as target: the teacher gives it 1/2, a student that knows nothing 1/3.
# The other two are (3/4, 1/4) and (1/2, 1/2): a cross entropy of ln 2.
TEACHER = [math.log(4.0), LN3, 0.0]
LN2 = math.log(2.0)
TARGET_PART = 0.5 * LN3
# A student that answers as the teacher does: -1/2 ln(1/2) for the target, the entropy of (3/4, 1/4) for the others.
SAME_TARGET, SAME_OTHERS = 0.5 * LN2, 0.75 * math.log(4 / 3) + 0.25 * math.log(4.0)
REFERENCES = (
    Reference({"gamma": 2.0}, Inputs(rows([0.0] * 3), rows(TEACHER), labels(0)), TARGET_PART + 2 * LN2),
    # two samples with a label, one of which the student answers as the teacher does, and one without
    Reference(
        {"gamma": 0.5},
        Inputs(rows([0.0] * 3, TEACHER, [7.0, 0.0, 0.0]), rows(TEACHER, TEACHER, [0.0, 0.0, 1.0]), labels(0, 0, -100)),
        (TARGET_PART + SAME_TARGET + 0.5 * (LN2 + SAME_OTHERS)) / 2,
    ),
    # T = 2 softens the others alone, from weights 9 and 1 to (3/4, 1/4). Of the target, weights 1 of 11 and 11 of 21.
    Reference(
        {"gamma": 3.0, "temperature": 2.0},
        Inputs(rows([0.0, 2 * LN3, 0.0]), rows([math.log(11.0), 2 * LN3, 0.0]), labels(0)),
        11 / 21 * math.log(11.0) + 3 * 4 * SAME_OTHERS,
    ),
    # two positions of one sample, classes on axis 1
    Reference(
        {"gamma": 1.0, "ignore_index": 255},
        Inputs(
            torch.stack([rows([0.0] * 3), rows([1.0, 0.0, 2.0])], dim=2).reshape(1, 3, 1, 2),
            torch.stack([rows(TEACHER), rows([0.0, 0.0, 9.0])], dim=2).reshape(1, 3, 1, 2),
            {"target": torch.tensor([[[0, 255]]])},
        ),
        TARGET_PART + LN2,
    ),
    # two classes: the target's part alone, 1/4 ln 2
    Reference({}, Inputs(rows([0.0, 0.0]), rows([LN3, 0.0]), labels(1)), 0.25 * LN2),
)
MUTANTS = (
    Mutant("drop T^2", "gamma * temperature**2", "gamma"),
    Mutant("T instead of T^2", "temperature**2", "temperature"),
    Mutant("the target among the others", "logits.scatter(1, ids, torch.finfo(logits.dtype).min / 2)", "logits"),
    Mutant("soften the target too", "teacher.softmax(dim=1).gather", "(teacher / temperature).softmax(dim=1).gather"),
    Mutant("a plain cross entropy", "teacher.softmax(dim=1).gather(1, ids) * F", "F"),
    Mutant("the others as in plain KD", "- gamma * temp", "- (1 - teacher.softmax(1).gather(1, ids)) * gamma * temp"),
    Mutant("the factor on both", "-of_target - gamma", "-gamma * of_target - gamma"),
    Mutant("forget the temperature of the teacher", "_among_others(teacher / temperature", "_among_others(teacher"),
    Mutant("swap the two distributions", "_among_others(teacher / temperature, ids).exp() *", "1.0 *"),
    Mutant("count what has no label", "of_others, labelled)", "of_others, labelled | ~labelled)"),
    Mutant("let the gradient reach the teacher", "teacher_logits.detach()", "teacher_logits"),
    Mutant("detach the student", "upcast(student_logits)", "upcast(student_logits.detach()) + 0 * student_logits"),
)


def by_function(component: DistillationLoss, inputs: Inputs) -> Tensor:
    assert isinstance(component, NKDLoss)
    options = {name: getattr(component, name) for name in ("gamma", "temperature", "ignore_index")}
    return nkd_loss(inputs.students[0], inputs.teachers[0], inputs.extra["target"], **options)


def nkd(name: str, *shape: int) -> Case:
    target = torch.arange(math.prod(shape) // shape[1]).reshape(shape[0], *shape[2:]) % shape[1]
    return Case(
        name,
        NKDLoss,
        lambda: Inputs(random(*shape, seed=8), random(*shape, seed=9), {"target": target}),
        {"temperature": 2.0, "gamma": 3.0},
        nkd_loss,
        by_function,
        REFERENCES,
        MUTANTS,
        bad_calls=((random(*shape, seed=1), random(*shape[:1], 8, *shape[2:], seed=2)),),
        bad_builds=(((8, 10), (8, 100)), ((8, 3, 10), (8, 3, 10)), ((8,), (8,))),
        zero_at_match=False,  # a cross entropy
    )


CASES = (nkd("nkd", 4, 5), nkd("nkd-dense", 4, 3, 2, 2))
