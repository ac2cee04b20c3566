"""The cases of contrastive representation distillation (CRD)."""

from math import e, exp, log

import torch
from torch import Tensor

from lightning_kd.functional import crd_loss
from lightning_kd.losses import CRDLoss, DistillationLoss
from lightning_kd.losses.samples import crd_blocks
from tests.losses.case import Case, Inputs, Mutant, Reference, random, rows

ONE = {"student": "a", "teacher": "b", "dim": 2, "negatives": 1, "temperature": 1.0}
EPS = 1e-7
HEADS = {  # heads that change nothing but the length
    f"{side}_embedding.{name}": value
    for side in ("student", "teacher")
    for name, value in (("weight", torch.eye(2)), ("bias", torch.zeros(2)))
}
# Two rows of two classes: the one negative of a row is the other row. Sample 0 is (1, 0) for both.
STATE = {
    **HEADS,
    "student_bank": rows([0.0, 1.0], [1.0, 0.0]),
    "teacher_bank": rows([0.6, 0.8], [-1.0, 0.0]),
    "log_normalizers": rows([log(2.0), log(3.0)])[0],
}
DATASET = (2, torch.tensor([0, 1]))
SAMPLE = Inputs(rows([4.0, 0.0]), rows([3.0, 0.0]), {"index": torch.tensor([0])}, dataset=DATASET)


def side(positive: float, negatives: list[float], share: float) -> float:
    """Cost of one side: probabilities of the own row and of the others, and K / n."""
    value = -log(positive / (positive + share + EPS))
    return value - sum(log(share / (p + share + EPS)) for p in negatives)


# the student scores .6 and -1 with the teacher's bank, Z = 2; the teacher 0 and 1 with the student's, Z = 3
BY_HAND = side(exp(0.6) / 2, [exp(-1) / 2], 1 / 2) + side(1 / 3, [e / 3], 1 / 2)
HALF = side(exp(0.3) / 2, [exp(-0.5) / 2], 1 / 2) + side(1 / 3, [exp(0.5) / 3], 1 / 2)  # temperature 2
TWICE = side(exp(0.6) / 2, [exp(-1) / 2] * 2, 1.0) + side(1 / 3, [e / 3] * 2, 1.0)  # the one other row is drawn twice
# sample 1 is (-1, 0) for the student and (0, 1) for the teacher; its scores are 1 and -.6, 0 and 1
BOTH = (BY_HAND + side(e / 2, [exp(-0.6) / 2], 1 / 2) + side(1 / 3, [e / 3], 1 / 2)) / 2
# the first batch fixes Z as the mean of the exponentials times 2: the sum of the two of each side
Z = exp(0.6) + exp(-1)
FIRST = side(exp(0.6) / Z, [exp(-1) / Z], 1 / 2) + side(1 / (1 + e), [e / (1 + e)], 1 / 2)
UNKNOWN = {**STATE, "log_normalizers": torch.full((2,), torch.nan)}
PAIR = Inputs(
    rows([4.0, 0.0], [-2.0, 0.0]), rows([3.0, 0.0], [0.0, 5.0]), {"index": torch.tensor([0, 1])}, dataset=DATASET
)
REFERENCES = (
    Reference(ONE, SAMPLE, BY_HAND, STATE),
    Reference({**ONE, "temperature": 2.0}, SAMPLE, HALF, STATE),
    Reference({**ONE, "negatives": 2}, SAMPLE, TWICE, STATE),
    Reference(ONE, PAIR, BOTH, STATE),
    Reference(ONE, SAMPLE, FIRST, UNKNOWN),
)
MUTANTS = (
    Mutant("swap the banks", "one_side(student, teacher_bank", "one_side(student, student_bank"),
    Mutant("swap the normalisers", "log_normalizers[0], temperature) + ", "log_normalizers[1], temperature) + "),
    Mutant("forget the number of negatives", "share = negatives / len(bank)", "share = 1 / len(bank)", crd_blocks),
    Mutant("count the positive as a negative", "scores[:, 0].neg_()", "pass", crd_blocks),
    Mutant("forget the temperature", "scores.div_(temperature).sub_(offset)", "scores.sub_(offset)", crd_blocks),
    Mutant("mean over the comparisons", "total / len(anchor) +", "total / contrast_index.numel() +", crd_blocks),
    Mutant("forget eps over c", "negatives * math.log1p(EPS / share)", "0.0", crd_blocks),
    Mutant("sum for mean in Z", "math.log(num_samples / (len(log_sums) * width))", "math.log(num_samples)", crd_blocks),
    Mutant("draw of the own class", "drawn += (drawn >= first) * count", "pass"),
    Mutant("let the gradient reach the teacher", "teacher_embedding(teacher.detach())", "teacher_embedding(teacher)"),
)


def settle(component: DistillationLoss) -> None:
    """Fix the normalisers, as the first batch of a run does."""
    dtype = component.get_buffer("student_bank").dtype
    component.load_state_dict({**component.state_dict(), "log_normalizers": torch.tensor([3.0, 4.0], dtype=dtype)})


def by_function(component: DistillationLoss, inputs: Inputs) -> Tensor:
    assert isinstance(component, CRDLoss)
    drawn = component.draw(inputs.extra["index"])
    student, teacher = component.student_embedding(inputs.students[0]), component.teacher_embedding(inputs.teachers[0])
    banks = component.student_bank, component.teacher_bank
    temperature = component.now(component.temperature)
    return crd_loss(student, teacher, *banks, drawn, log_normalizers=component.log_normalizers, temperature=temperature)


def case(name: str, **options: object) -> Case:
    index = torch.tensor([3, 0, 9, 5])
    return Case(
        name,
        CRDLoss,
        lambda: Inputs(
            random(4, 3, seed=1), random(4, 5, seed=2), {"index": index}, dataset=(10, torch.arange(10) % 3)
        ),
        {"student": "a", "teacher": "b", "dim": 6, "negatives": 8, **options},
        crd_loss,
        by_function,
        REFERENCES,
        MUTANTS,
        bad_builds=(((8,), (8, 16)),),
        zero_at_match=False,
        permutation_invariant=False,
        prepare=settle,
    )


CASES = (case("crd"), case("crd-any", negatives_from="any", temperature=0.5))
