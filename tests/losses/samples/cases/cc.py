"""The cases of correlation congruence (CC)."""

from math import exp

import torch
from torch import Tensor

from lightning_kd.functional import cc_loss
from lightning_kd.losses import CCLoss, DistillationLoss
from tests.losses.case import Case, Inputs, Mutant, Reference, random, rows

ONE = {"student": "a", "teacher": "b"}
TWO = {"student": ["a", "b"], "teacher": ["c", "d"]}
BAD = ((random(4, 3, seed=1), random(2, 3, seed=2)), (random(4, seed=1), random(4, 3, seed=2)))
WIDE, OPPOSITE = rows([2.0, 0.0], [0.0, 3.0]), rows([1.0, 0.0], [-5.0, 0.0])  # cosines 0 and -1
FIRST, SECOND = rows([1.0, 2.0], [3.0, 0.0]), rows([0.0, 1.0], [1.0, 1.0])
EMBEDDED = {**ONE, "variant": "repdistiller", "dim": 2}
AS_IT_IS = {
    f"{side}_embeddings.0.{name}": value
    for side in ("student", "teacher")
    for name, value in (("weight", torch.eye(2).double()), ("bias", torch.zeros(2).double()))
}
CC_REFERENCES = (
    # e^-.8 (1 + .8 c + .32 c^2) is 1 at c = 0 and .52 at c = -1, times e^-.8
    Reference(ONE, Inputs(WIDE, OPPOSITE), 2 * (0.48 * exp(-0.8)) ** 2 / 4),
    Reference({**ONE, "gamma": 1.0, "order": 1}, Inputs(WIDE, OPPOSITE), 2 * (2 * exp(-2.0)) ** 2 / 4),
    # products (5, 3, 3, 9) against (1, 1, 1, 2)
    Reference({**ONE, "kernel": "bilinear"}, Inputs(FIRST, SECOND.reshape(2, 2, 1, 1)), (16 + 4 + 4 + 49) / 4),
    # differences (1, 1), (2, 1): one pair of neighbours
    Reference(EMBEDDED, Inputs(FIRST, SECOND), 3.0, AS_IT_IS),
    # a third, (0, 4), of product 4 with the second: the mean of 3 and 4
    Reference(
        EMBEDDED, Inputs(torch.cat([FIRST, rows([0.0, 4.0])]), torch.cat([SECOND, rows([0.0, 0.0])])), 3.5, AS_IT_IS
    ),
    Reference({**TWO, "kernel": "bilinear"}, Inputs([FIRST, FIRST], [SECOND, SECOND]), 2 * 73 / 4),
)
CC_MUTANTS = (
    Mutant("forget the factor before the series", "math.exp(-2 * gamma) * series", "series"),
    Mutant("forget the factorial", "gamma / order", "gamma"),
    Mutant("forget the length", "products / (lengths.unsqueeze(1) * lengths)", "products"),
    Mutant(
        "the root of the sum of squares",
        "F.mse_loss(student_kernel, teacher_kernel)",
        "(student_kernel - teacher_kernel).norm().div(len(student) ** 2)",
    ),
    Mutant("every sample with itself", "(gap[:-1] * gap[1:])", "(gap * gap)"),
    Mutant("the sign of the difference", "teacher.flatten(1)).abs()", "teacher.flatten(1))"),
    Mutant("let the gradient reach the teacher", "(s, t.detach()) for s", "(s, t) for s"),
    Mutant("detach the student", '_correlation("CCLoss", s, t', '_correlation("CCLoss", s.detach() + 0 * s, t'),
)


def cc_by_function(component: DistillationLoss, inputs: Inputs) -> Tensor:
    assert isinstance(component, CCLoss)
    options = {name: getattr(component, name) for name in ("variant", "kernel", "gamma", "order")}
    students, teachers = inputs.students, inputs.teachers
    if component.variant == "repdistiller":
        students = [embed(s) for embed, s in zip(component.student_embeddings, students, strict=True)]
        teachers = [embed(t) for embed, t in zip(component.teacher_embeddings, teachers, strict=True)]
    pairs = zip(students, teachers, strict=True)
    return sum((cc_loss(s, t, **options) for s, t in pairs), torch.zeros((), dtype=torch.float64))


def cc(
    name: str,
    *,
    zero_at_match: bool = True,
    permute: bool = True,
    extreme: bool = True,
    **options: object,
) -> Case:
    return Case(
        name,
        CCLoss,
        lambda: Inputs(random(4, 3, seed=1), random(4, 5, seed=2)),
        {**ONE, **options},
        cc_loss,
        cc_by_function,
        CC_REFERENCES,
        CC_MUTANTS if not options else (),
        bad_calls=BAD,
        zero_at_match=zero_at_match,
        permutation_invariant=permute,
        extreme=extreme,
    )


CASES = (
    cc("correlation"),
    # at 1e4 the true gradient of this kernel is 1e12, which float16 cannot hold
    cc("correlation-bilinear", extreme=False, kernel="bilinear"),
    cc("correlation-neighbours", zero_at_match=False, permute=False, variant="repdistiller", dim=4),
)
