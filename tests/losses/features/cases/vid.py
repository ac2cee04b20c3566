"""The cases of variational information distillation (VID)."""

from math import log

import torch
from torch import Tensor

from lightning_kd.functional import vid_loss
from lightning_kd.losses import DistillationLoss, VIDLoss
from lightning_kd.losses.tensors import pool_to_smaller
from tests.losses.case import Case, Inputs, Mutant, Reference, random, rows

ONE = {"student": "a", "teacher": "b"}
TWO = {"student": ["a", "b"], "teacher": ["c", "d"]}


def scale(*variances: float) -> Tensor:
    """The parameters that give these variances, of which 1e-5 is the floor."""
    return torch.tensor([v - 1e-5 for v in variances], dtype=torch.float64).expm1().log()


def regressor(weights: list[list[list[float]]], *variances: float, pair: int = 0, maps: bool = False) -> dict:
    """Three given matrices and a variance for every channel."""
    values = {f"regressors.{pair}.{2 * i}.weight": rows(*matrix) for i, matrix in enumerate(weights)}
    values = {k: v[..., None, None] if maps else v for k, v in values.items()}
    return {**values, f"log_scales.{pair}": scale(*variances)}


PLAIN = [[[1.0]], [[1.0]], [[1.0]]]
REFERENCES = (
    # 3 -> 6 -> 6 and -2 (which ReLU stops) -> -6: 5 against -6
    Reference(
        {**ONE, "hidden_channels": 2},
        Inputs(rows([3.0]), rows([5.0])),
        (121 / 2 + log(2)) / 2,
        regressor([[[2.0], [-1.0]], [[1.0, 1.0], [0.0, 1.0]], [[-1.0, 5.0]]], 2.0),
    ),
    # channels: residuals 1 and 3 (mean square 5) at variance 2, 2 and 0 (mean square 2) at variance 1/2
    Reference(
        ONE,
        Inputs(rows([1.0, 2.0], [4.0, 1.0]), rows([2.0, 4.0], [1.0, 1.0])),
        (5 / 2 + log(2) + 2 / 0.5 + log(0.5)) / 4,
        regressor([[[1.0, 0.0], [0.0, 1.0]]] * 3, 2.0, 0.5),
    ),
    # the student's positions (-1, 7, 2, 6) are pooled to (3, 4) before the regressor; residuals 1 and 2
    Reference(
        ONE,
        Inputs(rows([-1.0, 7.0, 2.0, 6.0]).reshape(1, 1, 1, 4), rows([2.0, 6.0]).reshape(1, 1, 1, 2)),
        (2.5 / 4 + log(4)) / 2,
        regressor(PLAIN, 4.0, maps=True),
    ),
    # of a smaller student map the teacher's (1, 5, 2, 6) is pooled to (3, 4)
    Reference(
        ONE,
        Inputs(rows([2.0, 6.0]).reshape(1, 1, 1, 2), rows([1.0, 5.0, 2.0, 6.0]).reshape(1, 1, 1, 4)),
        (2.5 / 4 + log(4)) / 2,
        regressor(PLAIN, 4.0, maps=True),
    ),
    # one sample of two tokens of one channel: residuals 1 and 2; and a second pair with residual 3 at variance 1
    Reference(
        TWO,
        Inputs([rows([3.0], [4.0])[None], rows([5.0])], [rows([2.0], [6.0])[None], rows([8.0])]),
        (2.5 / 4 + log(4)) / 2 + 9 / 2,
        {**regressor(PLAIN, 4.0), **regressor(PLAIN, 1.0, pair=1)},
    ),
    # the variance as it starts, and a hidden layer of width 1 given by its shape
    Reference(
        {**ONE, "hidden_channels": 1, "initial_variance": 3.0},
        Inputs(rows([1.0, 2.0]), rows([1.0, 5.0])),
        ((9 + 4) / 2 / 3 + log(3)) / 2,
        {k: v for k, v in regressor([[[1.0, 1.0]], [[1.0]], [[4 / 3], [1.0]]], 1.0, 1.0).items() if "log" not in k},
        tolerance=1e-6,  # the variance is made in float32
    ),
)
MUTANTS = (
    Mutant("deviation for variance", "squares / variance", "squares / variance.sqrt()"),
    Mutant("forget the penalty", " + variance.log()).mean()", ").mean()"),
    Mutant("forget the half", "0.5 * (squares", "(squares"),
    Mutant("sum over channels", "variance.log()).mean()", "variance.log()).sum()"),
    Mutant("exponential for softplus", "F.softplus(upcast(log_scale))", "upcast(log_scale).exp()"),
    Mutant("sum over samples and positions", ".mean(others)", ".sum(others)"),
    Mutant("one residual for all channels", ".mean(others)", ".mean()"),
    Mutant("no ReLU", "nn.ReLU()", "nn.Identity()"),
    Mutant(
        "pool the prediction",
        "            student, teacher = pool_to_smaller(student, teacher)\n        return vid_loss(regressor(student),",
        "            student, teacher = pool_to_smaller(regressor(student), teacher)\n        return vid_loss(student,",
    ),
    Mutant(
        "bring the teacher to the student's size",
        "student, teacher = pool_to_smaller(student, teacher)",
        "teacher = F.interpolate(teacher, size=student.shape[2:])",
    ),
    Mutant("start elsewhere", "math.log(-math.expm1(-excess))", "0.0"),
    Mutant("let the gradient reach the teacher", "target.detach()", "target"),
    Mutant("detach the student", "regressor(student)", "regressor(student.detach() + 0 * student)"),
)


def by_function(component: DistillationLoss, inputs: Inputs) -> Tensor:
    assert isinstance(component, VIDLoss)
    total = torch.zeros((), dtype=torch.float64)
    for regress, log_scale, s, t in zip(
        component.regressors, component.log_scales, inputs.students, inputs.teachers, strict=True
    ):
        student, teacher = pool_to_smaller(s, t) if s.ndim == 4 else (s, t)
        total = total + vid_loss(regress(student), teacher, log_scale, eps=component.eps)
    return total


def case(name: str, inputs: Inputs, options: dict[str, object], **facts: object) -> Case:
    return Case(
        name,
        VIDLoss,
        lambda: inputs,
        options,
        vid_loss,
        by_function,
        REFERENCES,
        nonnegative=False,
        zero_at_match=False,
        **facts,
    )


CASES = (
    case(
        "variational",
        Inputs(random(4, 3, 3, 4, seed=1), random(4, 5, 3, 4, seed=2)),
        ONE,
        mutants=MUTANTS,
        bad_calls=(
            (random(4, 3, seed=1), random(2, 3, seed=2), random(3, seed=3)),
            (random(4, 3, 2, 2, seed=1), random(4, 3, 4, 2, seed=2), random(3, seed=3)),
            (random(4, 5, 3, seed=1), random(4, 5, 3, seed=2), random(5, seed=3)),
            (random(4, seed=1), random(4, seed=2), random(1, seed=3)),
        ),
        bad_builds=(((8, 16), (8, 16, 4, 4)), ((8, 10, 16), (8, 11, 16)), ((8,), (8,))),
    ),
    case(
        "variational-pairs",
        Inputs(
            [random(4, 3, 4, 2, seed=1), random(4, 2, 2, 2, seed=2)],
            [random(4, 2, 2, 3, seed=3), random(4, 3, 3, 4, seed=4)],
        ),
        {**TWO, "hidden_channels": 3, "initial_variance": 1.0},
    ),
    case("variational-vectors", Inputs(random(4, 3, seed=1), random(4, 5, seed=2)), ONE),
    case("variational-tokens", Inputs(random(4, 3, 2, seed=1), random(4, 3, 5, seed=2)), ONE),
)
