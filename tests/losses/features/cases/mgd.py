"""The cases of masked generative distillation (MGD).

The first numbers that torch draws after the seed 3, which the conformance suite sets, are .004, .106, .286, .027, .472
and .060; what is drawn above one minus the ratio is masked.
"""

import torch
from torch import Tensor

from lightning_kd.functional import mgd_loss
from lightning_kd.losses import DistillationLoss, MGDLoss
from lightning_kd.losses.tensors import pool_to_smaller
from tests.losses.case import Case, Inputs, Mutant, Reference, random, rows

ONE = {"student": "a", "teacher": "b"}
TWO = {"student": ["a", "b"], "teacher": ["c", "d"]}
WHOLE = {**ONE, "mask_ratio": 0.0}


def maps(*channels: list[float]) -> Tensor:
    """One sample with its channels over one row of positions."""
    return rows(*channels).reshape(1, len(channels), 1, -1)


def block(pair: int = 0, channels: int = 1) -> dict[str, Tensor]:
    """Left and right neighbour of all channels, minus 3; then, where positive, its double plus 1; other channels 1."""
    first, second = torch.zeros(2, channels, channels, 3, 3, dtype=torch.float64)
    first[0, :, 1, 0] = first[0, :, 1, 2] = 1.0
    second[0, 0, 1, 1] = 2.0
    bias = torch.ones(channels, dtype=torch.float64)
    values = {"0.weight": first, "0.bias": -3 * bias, "2.weight": second, "2.bias": bias}
    return {f"generators.{pair}.{name}": value for name, value in values.items()}


STUDENT, TEACHER = maps([1.0, 2.0, 4.0]), maps([1.0, 2.0, 3.0])
REFERENCES = (
    # the student's neighbours (2, 5, 2) - 3 = (-1, 2, -1) -> (0, 2, 0) -> (1, 5, 1) against (1, 2, 3): 9 + 4
    Reference(WHOLE, Inputs(STUDENT, TEACHER), 13.0, block()),
    # two samples, the second without an error: the mean
    Reference(
        WHOLE, Inputs(torch.cat([STUDENT, STUDENT]), torch.cat([TEACHER, maps([1.0, 5.0, 1.0])])), 13 / 2, block()
    ),
    # .004, .106 and .286: the last is masked, which leaves (4, 1, 0), neighbours (1, 4, 1) -> (1, 3, 1): 1 + 4;
    # .027, .472 and .060: the second sample keeps (2, 0, 2), neighbours (0, 4, 0) -> (1, 3, 1)
    Reference(
        {**ONE, "mask_ratio": 0.8},
        Inputs(torch.cat([maps([4.0, 1.0, 5.0]), maps([2.0, 9.0, 2.0])]), torch.cat([TEACHER, TEACHER])),
        5.0,
        block(),
    ),
    # .004 and .106: the second channel is masked whole; of the generated two the second is 1 everywhere
    Reference(
        {**ONE, "mask_ratio": 0.9, "masked": "channels"},
        Inputs(maps([1.0, 2.0, 4.0], [9.0, 9.0, 9.0]), maps([1.0, 2.0, 3.0], [1.0, 1.0, 1.0])),
        13.0,
        block(channels=2),
    ),
    # the student's six positions are pooled in pairs to (1, 2, 4)
    Reference(WHOLE, Inputs(maps([0.0, 2.0, 1.0, 3.0, 2.0, 6.0]), TEACHER), 13.0, block()),
    # a projector (1, -1) from two channels to one, to which it adds 1: the masked third position is 0, not 1
    Reference(
        {**ONE, "mask_ratio": 0.8},
        Inputs(maps([5.0, 2.0, 6.0], [2.0, 2.0, 2.0]), TEACHER),
        5.0,
        {
            **block(),
            "projectors.0.conv.weight": rows([1.0, -1.0]).reshape(1, 2, 1, 1),
            "projectors.0.conv.bias": torch.ones(1, dtype=torch.float64),
        },
    ),
    # two pairs are added: 9 + 4, and 0 + 4
    Reference(
        {**TWO, "mask_ratio": 0.0},
        Inputs([STUDENT, STUDENT], [TEACHER, maps([1.0, 5.0, 3.0])]),
        17.0,
        {**block(), **block(1)},
    ),
)
MUTANTS = (
    Mutant("sum over the samples", " / max(len(student), 1)", ""),
    Mutant("mean over the positions", 'reduction="sum"', 'reduction="mean"'),
    Mutant("no ReLU", "nn.ReLU()", "nn.Identity()"),
    Mutant("mask what should stay", "drawn <= 1.0", "drawn > 1.0"),
    Mutant("keep what should be masked", "1.0 - self.mask_ratio", "self.mask_ratio"),
    Mutant("one mask for all samples", "(batch, 1, height, breadth)", "(1, 1, height, breadth)"),
    Mutant("always mask positions", 'if self.masked == "positions" else', "if True else"),
    Mutant(
        "mask before the projector",
        "aligned * self._kept(aligned)",
        "projector(student * self._kept(student))",
    ),
    Mutant(
        "pick positions instead of pooling",
        "student, teacher = pool_to_smaller(student, teacher)\n        aligned",
        "student = F.interpolate(student, size=teacher.shape[2:])\n        aligned",
    ),
    Mutant("let the gradient reach the teacher", "teacher.detach()", "teacher"),
    Mutant("detach the student", "= projector(student)", "= projector(student.detach() + 0 * student)"),
)


def by_function(component: DistillationLoss, inputs: Inputs) -> Tensor:
    """The mask is drawn as the authors draw it."""
    assert isinstance(component, MGDLoss)
    parts = zip(component.projectors, component.generators, inputs.students, inputs.teachers, strict=True)
    total = torch.zeros((), dtype=torch.float64)
    for projector, generator, s, t in parts:
        student, teacher = pool_to_smaller(s, t)
        shape = (len(s), 1, *student.shape[2:]) if component.masked == "positions" else (*teacher.shape[:2], 1, 1)
        masked = torch.rand(shape) > 1 - component.mask_ratio
        total = total + mgd_loss(generator(projector(student).masked_fill(masked, 0.0)), teacher)
    return total


def case(name: str, inputs: Inputs, options: dict[str, object], **facts: object) -> Case:
    return Case(
        name,
        MGDLoss,
        lambda: inputs,
        options,
        mgd_loss,
        by_function,
        REFERENCES,
        zero_at_match=False,
        permutation_invariant=False,
        **facts,
    )


CASES = (
    case(
        "masked",
        Inputs(random(4, 3, 5, 4, seed=1), random(4, 5, 5, 4, seed=2)),
        ONE,
        mutants=MUTANTS,
        bad_calls=(
            (random(4, 3, 2, 2, seed=1), random(2, 3, 2, 2, seed=2)),
            (random(4, 3, 2, 2, seed=1), random(4, 3, 4, 2, seed=2)),
            (random(4, 3, seed=1), random(4, 3, seed=2)),
        ),
        bad_builds=(((8, 16), (8, 16, 4, 4)), ((8, 16, 4, 4), (8, 5, 16))),
    ),
    case(
        "masked-levels",
        Inputs(
            [random(4, 3, 4, 4, seed=1), random(4, 3, 2, 4, seed=2)],
            [random(4, 3, 2, 4, seed=3), random(4, 2, 4, 2, seed=4)],
        ),
        {**TWO, "mask_ratio": 0.5},
    ),
    case(
        "masked-channels",
        Inputs(random(4, 6, 3, 4, seed=1), random(4, 6, 3, 4, seed=2)),
        {**ONE, "mask_ratio": 0.15, "masked": "channels"},
    ),
)
