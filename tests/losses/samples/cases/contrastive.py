"""The cases of contrast within the batch (InfoNCE, triplet)."""

from math import exp, log

import torch
from torch import Tensor

from lightning_kd.functional import info_nce_loss, triplet_loss
from lightning_kd.losses import DistillationLoss, InfoNCELoss, TripletLoss
from tests.losses.case import Case, Inputs, Mutant, Reference, random, rows

ONE = {"student": "a", "teacher": "b", "dim": 2}
SAME = {  # heads that change nothing but the length
    f"{side}_embedding.{name}": value
    for side in ("student", "teacher")
    for name, value in (("weight", torch.eye(2)), ("bias", torch.zeros(2)))
}
STUDENT, TEACHER = rows([2.0, 0.0], [0.0, 3.0]), rows([1.0, 0.0], [-5.0, 0.0])  # cosines (1, -1) and (0, 0)
PICK, PICKED = (log(1 + exp(-1)) + log(2)) / 2, log(1 + exp(-0.5))  # at temperature 2
NEAR = rows([3.0, 4.0], [-5.0, 0.0])  # cosines (.6, -1) and (.8, 0): squared distances (.8, 4) and (.4, 2)
MUTANTS = (
    Mutant("normalise over the batch", "), dim=1)", "), dim=0)"),
    Mutant("let the gradient reach the teacher", "teacher.detach()", "teacher"),
    Mutant(
        "detach the student",
        "self.student_embedding(student)",
        "self.student_embedding(student.detach() + 0 * student)",
    ),
)


def by_info_nce(component: DistillationLoss, inputs: Inputs) -> Tensor:
    assert isinstance(component, InfoNCELoss)
    student, teacher = component.student_embedding(inputs.students[0]), component.teacher_embedding(inputs.teachers[0])
    return info_nce_loss(
        student, teacher, temperature=component.now(component.temperature), symmetric=component.symmetric
    )


def by_triplet(component: DistillationLoss, inputs: Inputs) -> Tensor:
    assert isinstance(component, TripletLoss)
    student, teacher = component.student_embedding(inputs.students[0]), component.teacher_embedding(inputs.teachers[0])
    return triplet_loss(student, teacher, margin=component.margin)


BAD = ((random(4, 3, seed=1), random(2, 3, seed=2)), (random(4, 3, 2, seed=1), random(4, 3, 2, seed=2)))


def info_nce(name: str, **options: object) -> Case:
    return Case(
        name,
        InfoNCELoss,
        lambda: Inputs(random(4, 3, seed=1), random(4, 5, seed=2)),
        {**ONE, "dim": 6, **options},
        info_nce_loss,
        by_info_nce,
        (
            Reference({**ONE, "temperature": 2.0}, Inputs(STUDENT, TEACHER), PICK, SAME),
            Reference(
                {**ONE, "temperature": 2.0, "symmetric": True}, Inputs(STUDENT, TEACHER), (PICK + PICKED) / 2, SAME
            ),
            # at temperature 1 the cosine differences are 2 and 0
            Reference({**ONE, "temperature": 1.0}, Inputs(STUDENT, TEACHER), (log(1 + exp(-2)) + log(2)) / 2, SAME),
        ),
        (
            *MUTANTS,
            Mutant("pick one's own kind", "upcast_alike(student, teacher))", "upcast_alike(student, student))"),
            Mutant("forget the temperature", "_pick(cosines / temperature)", "_pick(cosines)"),
            Mutant("sum the two", "_pick(cosines.T / temperature)) / 2", "_pick(cosines.T / temperature))"),
            Mutant("pick among the teachers twice", "_pick(cosines.T", "_pick(cosines"),
        ),
        bad_calls=BAD,
        bad_builds=(((8,), (8, 16)),),
        zero_at_match=False,
    )


TRIPLET = Case(
    "triplet",
    TripletLoss,
    lambda: Inputs(random(6, 3, seed=1), random(6, 5, seed=2)),
    {**ONE, "dim": 6, "margin": 1.5},
    triplet_loss,
    by_triplet,
    (
        Reference({**ONE, "margin": 0.5}, Inputs(STUDENT, NEAR), (0 + 0.5 + 2 - 0.4) / 2, SAME),
        Reference({**ONE, "margin": 4.0}, Inputs(STUDENT, NEAR), (4 + 0.8 - 4 + 4 + 2 - 0.4) / 2, SAME),
        # a third teacher (0, 1), as far from the first as 2, is nearest to the second, at 0, and its own student's, too
        Reference(
            {**ONE, "margin": 4.0},
            Inputs(rows([2.0, 0.0], [0.0, 3.0], [0.0, 1.0]), rows([3.0, 4.0], [-5.0, 0.0], [0.0, 2.0])),
            (4 + 0.8 - 2 + 4 + 2 - 0 + 4 + 0 - 0.4) / 3,
            SAME,
        ),
    ),
    (
        *MUTANTS,
        Mutant("forget what was taken off", " + (teacher @ middle).to(dtype)", ""),
        Mutant("compare one's own kind", "@ teacher.to(dtype).T", "@ (student - middle).to(dtype).T"),
        Mutant("easiest negative", "masked_fill(own, -torch.inf).amax", "masked_fill(own, torch.inf).amin"),
        Mutant("sum", "clamp_min(0.0).mean()", "clamp_min(0.0).sum()"),
        Mutant("no hinge", ".clamp_min(0.0).mean()", ".mean()"),
        Mutant("half the distance", "2.0 * (hardest", "(hardest"),
    ),
    bad_calls=BAD,
    bad_builds=(((8,), (8, 16)),),
    zero_at_match=False,
    single_sample=True,
)

CASES = (info_nce("info-nce"), info_nce("info-nce-symmetric", symmetric=True, temperature=0.5), TRIPLET)
