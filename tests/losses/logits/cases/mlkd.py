"""The cases of multi-level logit distillation (MLKD)."""

from torch import Tensor

from lightning_kd.functional import mlkd_loss
from lightning_kd.losses import DistillationLoss, MLKDLoss
from tests.losses.case import Case, Inputs, Mutant, Reference, random, rows
from tests.losses.logits.cases.kd import LN3, QUARTERS

ONCE = {"temperatures": [1.0]}
NO_BATCH, NO_CLASSES = {"batch": 0.0}, {"classes": 0.0}
NO_INSTANCE = {"instance": 0.0}
# Student (1/2, 1/2) against (3/4, 1/4). Of one sample P P' is 1/2 against 5/8, a difference of 1/8. Of the classes
# P' P is (4, 4; 4, 4) / 16 against (9, 3; 3, 1) / 16: squares (25 + 1 + 1 + 9) / 256, over two classes.
SAMPLE, CLASSES = 1 / 64, 36 / 256 / 2
# Two samples (3/4, 1/4) and (1/2, 1/2) against (3/4, 1/4) and (1/4, 3/4). P P' is (5, 4; 4, 4) / 8 against
# (5, 3; 3, 5) / 8: three differences of 1/8, over two samples. P' P is (13, 7; 7, 5) / 16 against (10, 6; 6, 10) / 16.
# A third sample (1/2, 1/2) in both adds nothing to a difference, but makes more samples than classes.
STUDENT, TEACHER = rows([LN3, 0.0], [0.0, 0.0]), rows([LN3, 0.0], [0.0, LN3])
OF_SAMPLES, OF_CLASSES = 3 / 64, (9 + 1 + 1 + 25) / 256 / 2
MORE = rows([LN3, 0.0], [0.0, 0.0], [0.0, 0.0]), rows([LN3, 0.0], [0.0, LN3], [0.0, 0.0])
REFERENCES = (
    Reference(ONCE, Inputs(rows([0.0, 0.0]), rows([LN3, 0.0])), QUARTERS + SAMPLE + CLASSES),
    # T = 2 from twice the logits: T^2 belongs to the divergence alone
    Reference(
        {"temperatures": [2.0], "instance": 3.0, "batch": 5.0, "classes": 7.0},
        Inputs(rows([0.0, 0.0]), rows([2 * LN3, 0.0])),
        4 * 3 * QUARTERS + 5 * SAMPLE + 7 * CLASSES,
    ),
    # two temperatures: (3/4, 1/4) and (9/10, 1/10), whose squares add up to 5/8 and 41/50, against 1/2
    Reference(
        {"temperatures": [2.0, 1.0], **NO_INSTANCE, **NO_CLASSES},
        Inputs(rows([2 * LN3, 0.0]), rows([0.0, 0.0])),
        SAMPLE + 0.32**2,
    ),
    Reference({**ONCE, **NO_INSTANCE, **NO_CLASSES}, Inputs(STUDENT, TEACHER), OF_SAMPLES / 2),
    Reference({**ONCE, **NO_INSTANCE, **NO_BATCH}, Inputs(STUDENT, TEACHER), OF_CLASSES),
    Reference({**ONCE, **NO_INSTANCE, **NO_CLASSES}, Inputs(*MORE), OF_SAMPLES / 3),
    Reference({**ONCE, **NO_INSTANCE, **NO_BATCH}, Inputs(*MORE), OF_CLASSES),
    # the samples are positions
    Reference(
        {**ONCE, **NO_INSTANCE, "batch": 2.0},
        Inputs(*(one.T.reshape(1, 2, 1, 3) for one in MORE)),
        2 * OF_SAMPLES / 3 + OF_CLASSES,
    ),
)
MUTANTS = (
    Mutant(
        "the first temperature alone",
        "for temperature in temperatures:\n            own",
        "for temperature in temperatures[:1]:\n            own",
    ),
    Mutant("forget the temperature", "(logits / temperature).softmax", "logits.softmax"),
    Mutant("swap the levels", "_squares(own, its) +", "_squares(own.T, its.T) +"),
    Mutant(
        "swap the factors",
        "_likeness(student, teacher, temperatures, batch, classes)",
        "_likeness(student, teacher, temperatures, classes, batch)",
    ),
    Mutant("no mean over the samples", "batch / own.shape[0]", "batch"),
    Mutant("a mean over pairs of classes", "classes / own.shape[1]", "classes / own.shape[1] ** 2"),
    Mutant("half of the product", "(product + product.T) / 2", "product / 2"),
    Mutant("no transpose", "product * product.T", "product * product"),
    Mutant("classes on the last axis", "probabilities.movedim(1, -1).flatten(0, -2)", "probabilities.flatten(0, -2)"),
    Mutant("forget the factor of the divergence", "instance * kd_loss", "kd_loss"),
    Mutant("let the gradient reach the teacher", "teacher_logits.detach()", "teacher_logits"),
    Mutant(
        "detach the student",
        "upcast_alike(student_logits,",
        "upcast_alike(student_logits.detach() + 0 * student_logits,",
    ),
)


def by_function(component: DistillationLoss, inputs: Inputs) -> Tensor:
    assert isinstance(component, MLKDLoss)
    options = {name: getattr(component, name) for name in ("temperatures", "instance", "batch", "classes")}
    return mlkd_loss(inputs.students[0], inputs.teachers[0], **options)


def mlkd(name: str, *shape: int) -> Case:
    return Case(
        name,
        MLKDLoss,
        lambda: Inputs(random(*shape, seed=10), random(*shape, seed=11)),
        {"temperatures": [2.0, 1.0], "batch": 3.0},
        mlkd_loss,
        by_function,
        REFERENCES,
        MUTANTS,
        bad_calls=((random(*shape, seed=1), random(*shape[:1], 8, *shape[2:], seed=2)),),
        bad_builds=(((8, 10), (8, 100)), ((8, 3, 10), (8, 3, 10)), ((8,), (8,))),
    )


CASES = (mlkd("mlkd", 4, 5), mlkd("mlkd-dense", 4, 3, 2, 2))
