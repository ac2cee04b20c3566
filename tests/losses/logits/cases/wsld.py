"""The cases of weighted soft labels (WSLD)."""

import math

import torch
from torch import Tensor

from lightning_kd.functional import wsld_loss
from lightning_kd.losses import DistillationLoss, WSLDLoss
from tests.losses.case import Case, Inputs, Mutant, Reference, random, rows
from tests.losses.logits.cases.dkd import labels
from tests.losses.logits.cases.kd import LN3

# A student that knows nothing of two classes has a cross entropy of ln 2 with every teacher, and ln 2 on the label. The
# teacher (3/4, 1/4) has ln 4/3 on the first label and ln 4 on the second, whose half ln 2 is: weights 1 - exp(-ratio).
LN2 = math.log(2.0)
KNOWN, UNKNOWN = 1 - math.exp(-LN2 / math.log(4 / 3)), 1 - math.exp(-0.5)
ONCE = {"temperature": 1.0}
LOOSE = 1e-6  # the numbers leave the 1e-7 out
REFERENCES = (
    Reference(ONCE, Inputs(rows([0.0, 0.0]), rows([LN3, 0.0]), labels(0)), KNOWN * LN2, tolerance=LOOSE),
    # T = 2 softens (9/10, 1/10) to (3/4, 1/4), and not what the weight is made of; the second of three has no label
    Reference(
        {"temperature": 2.0},
        Inputs(
            rows([2 * LN3, 0.0], [5.0, 1.0], [0.0, 0.0]),
            rows([2 * LN3, 0.0], [0.0, 3.0], [LN3, 0.0]),
            labels(0, -100, 1),
        ),
        # a match: ratio 1, and the entropy of (3/4, 1/4)
        4 * ((1 - 1 / math.e) * (0.75 * math.log(4 / 3) + 0.25 * math.log(4.0)) + UNKNOWN * LN2) / 2,
        tolerance=LOOSE,
    ),
    # two positions of one sample
    Reference(
        {**ONCE, "ignore_index": 255},
        Inputs(
            rows([0.0, 0.0, 0.0, 3.0]).reshape(1, 2, 1, 2),
            rows([LN3, 1.0, 0.0, 0.0]).reshape(1, 2, 1, 2),
            {"target": torch.tensor([[[1, 255]]])},
        ),
        UNKNOWN * LN2,
        tolerance=LOOSE,
    ),
    # a teacher that is certain of the label, to within exp(-40): what the student does not know of it counts whole
    Reference(ONCE, Inputs(rows([0.0, 0.0]), rows([40.0, 0.0]), labels(0)), LN2),
    # its doubt is exp(-16) = 1.125e-7 and ln 2 / (1.125e-7 + 1e-7) is large too; of a student with that doubt it is
    # 1.125 / 2.125, which the small number decides: 1 - exp(-that) times the entropy 17 exp(-16)
    Reference(
        ONCE,
        Inputs(rows([16.0, 0.0]), rows([16.0, 0.0]), labels(0)),
        (1 - math.exp(-math.exp(-16) / (math.exp(-16) + 1e-7))) * 17 * math.exp(-16),
        tolerance=1e-5,
    ),
)
MUTANTS = (
    Mutant("drop T^2", " * temperature**2", ""),
    Mutant(
        "soften the weights too",
        "_shares(student.detach(), teacher, ids)",
        "_shares(student / temperature, teacher / temperature, ids)",
    ),
    Mutant("the ratio itself", "-torch.expm1(-own / (its + _EPS))", "own / (its + _EPS)"),
    Mutant("the other way round", "-own / (its + _EPS)", "-its / (own + _EPS)"),
    Mutant("without the small number", "_EPS = 1e-7", "_EPS = 0.0"),
    Mutant("forget the temperature of the teacher", "(teacher / temperature).softmax", "teacher.softmax"),
    Mutant("forget the temperature of the student", "F.log_softmax(student / temperature", "F.log_softmax(student"),
    Mutant("count what has no label", "entropies, labelled)", "entropies, labelled | ~labelled)"),
    Mutant("let the gradient reach the teacher", "teacher_logits.detach()", "teacher_logits"),
    Mutant("detach the student", "upcast(student_logits)", "upcast(student_logits.detach()) + 0 * student_logits"),
)


def by_function(component: DistillationLoss, inputs: Inputs) -> Tensor:
    assert isinstance(component, WSLDLoss)
    options = {name: getattr(component, name) for name in ("temperature", "ignore_index")}
    return wsld_loss(inputs.students[0], inputs.teachers[0], inputs.extra["target"], **options)


def wsld(name: str, *shape: int) -> Case:
    target = torch.arange(math.prod(shape) // shape[1]).reshape(shape[0], *shape[2:]) % shape[1]
    return Case(
        name,
        WSLDLoss,
        lambda: Inputs(random(*shape, seed=8), random(*shape, seed=9), {"target": target}),
        {"temperature": 3.0},
        wsld_loss,
        by_function,
        REFERENCES,
        MUTANTS,
        bad_calls=((random(*shape, seed=1), random(*shape[:1], 8, *shape[2:], seed=2)),),
        bad_builds=(((8, 10), (8, 100)), ((8, 3, 10), (8, 3, 10)), ((8,), (8,))),
        zero_at_match=False,  # a cross entropy
        slope=False,  # no gradient reaches the weights, which change with the student
    )


CASES = (wsld("wsld", 4, 5), wsld("wsld-dense", 4, 3, 2, 2))
