"""The cases of distillation of numbers."""

from torch import Tensor

from lightning_kd.functional import regression_kd_loss
from lightning_kd.losses import DistillationLoss, RegressionKDLoss
from tests.losses.case import Case, Inputs, Mutant, Reference, random, rows


def by_function(component: DistillationLoss, inputs: Inputs) -> Tensor:
    assert isinstance(component, RegressionKDLoss)
    axis = component.layout.index("C") if isinstance(component.layout, str) else 1
    options = {"kind": component.kind, "delta": component.delta, "margin": component.margin, "axis": axis}
    return regression_kd_loss(*inputs.args, **inputs.extra, **options)  # type: ignore[arg-type]


BAD = ((random(4, 3, seed=1), random(4, 2, seed=2)), (random(4, seed=1), random(4, 1, seed=2)))
MSE = Case(
    "regression-mse",
    RegressionKDLoss,
    lambda: Inputs(random(4, 3, seed=1), random(4, 3, seed=2)),
    {},
    regression_kd_loss,
    by_function,
    (
        # (1 + 9 + 0 + 4) / 4
        Reference({}, Inputs(rows([1.0, 2.0], [3.0, 0.0]), rows([2.0, -1.0], [3.0, 2.0])), 3.5),
        # differences 1, 3, 0 and 2 with delta 1.5: (1 / 2 + 1.5 * 2.25 + 0 + 1.5 * 1.25) / 4
        Reference(
            {"kind": "huber", "delta": 1.5},
            Inputs(rows([1.0, 2.0], [3.0, 0.0]), rows([2.0, -1.0], [3.0, 2.0])),
            (0.5 + 3.375 + 1.875) / 4,
        ),
    ),
    (
        Mutant("absolute for squared", "F.mse_loss(student, teacher)", "F.l1_loss(student, teacher)"),
        Mutant("forget delta", "F.huber_loss(student, teacher, delta=delta)", "F.huber_loss(student, teacher)"),
        Mutant(
            "smooth L1 for Huber", "F.huber_loss(student, teacher, delta", "F.smooth_l1_loss(student, teacher, beta"
        ),
    ),
    bad_calls=BAD,
    bad_builds=(((8, 10), (8, 11)), ((8,), (8, 1))),
)
BOUNDED = Case(
    "regression-bounded",
    RegressionKDLoss,
    lambda: Inputs(random(4, 3, seed=3), random(4, 3, seed=4), {"target": random(4, 3, seed=5)}),
    {"kind": "bounded"},
    regression_kd_loss,
    by_function,
    (
        # Squared errors of the student 2, 8 and 1, of the teacher 4, 4 and 1: the first is better than the teacher.
        # The third is equal, and with a margin of 0 no worse: 8 / 3.
        Reference(
            {"kind": "bounded"},
            Inputs(
                rows([1.0, 1.0], [2.0, 2.0], [1.0, 0.0]),
                rows([2.0, 0.0], [0.0, 2.0], [0.0, 1.0]),
                {"target": rows([0.0, 0.0], [0.0, 0.0], [0.0, 0.0])},
            ),
            8.0 / 3,
        ),
        # With a margin of 2.5 being better by 2 is not enough, and neither is being equal: (2 + 8 + 1) / 3.
        Reference(
            {"kind": "bounded", "margin": 2.5},
            Inputs(
                rows([1.0, 1.0], [2.0, 2.0], [1.0, 0.0]),
                rows([2.0, 0.0], [0.0, 2.0], [0.0, 1.0]),
                {"target": rows([0.0, 0.0], [0.0, 0.0], [0.0, 0.0])},
            ),
            11.0 / 3,
        ),
        # The same three as tokens of one text.
        Reference(
            {"kind": "bounded", "layout": "NLC"},
            Inputs(
                rows([1.0, 1.0], [2.0, 2.0], [1.0, 0.0]).unsqueeze(0),
                rows([2.0, 0.0], [0.0, 2.0], [0.0, 1.0]).unsqueeze(0),
                {"target": rows([0.0, 0.0], [0.0, 0.0], [0.0, 0.0]).unsqueeze(0)},
            ),
            8.0 / 3,
        ),
    ),
    (
        Mutant("forget the margin", "error + margin >", "error >"),
        Mutant("margin on the teacher's side", "error + margin > teacher_error", "error > teacher_error + margin"),
        Mutant("the other way round", "> teacher_error, error", "< teacher_error, error"),
        Mutant("learn the teacher's error", "> teacher_error, error", "> teacher_error, teacher_error"),
        Mutant("average the numbers of a sample", "values.sum(dim=axis)", "values.mean(dim=axis)"),
        Mutant("always take axis 1", "values.sum(dim=axis)", "values.sum(dim=1)"),
    ),
    zero_at_match=False,
    slope=True,
)
CASES = (MSE, BOUNDED)
