"""The cases of DIST."""

from torch import Tensor

from lightning_kd.functional import dist_loss
from lightning_kd.losses import DistillationLoss, DISTLoss
from tests.losses.case import Case, Inputs, Mutant, Reference, random, rows

# p = (3, 2, 1) / 6 and (1, 1, 2) / 4 against (2, 3, 1) / 6 and (2, 1, 1) / 4. Samples correlate by 1/2 and -1/2, by
# (1, 0, -1) (0, 1, -1) = 1 of 2 and (-1, -1, 2) (2, -1, -1) = -3 of 6; two samples' classes by the sign of their
# changes: 1/2 -> 1/4 against 1/3 -> 1/2 is -1, 1/3 -> 1/4 against 1/2 -> 1/4 is 1, 1/6 -> 1/2 against 1/6 -> 1/4 is 1.
STUDENT, TEACHER = rows([3.0, 2.0, 1.0], [1.0, 1.0, 2.0]).log(), rows([2.0, 3.0, 1.0], [2.0, 1.0, 1.0]).log()
DIST_REFERENCES = (
    Reference({"gamma": 3.0}, Inputs(STUDENT, TEACHER), 1 + 3 * 2 / 3),
    Reference({"beta": 5.0, "temperature": 2.0}, Inputs(2 * STUDENT, 2 * TEACHER), 4 * (5 + 2 / 3)),
    # the samples are two positions
    Reference({"gamma": 3.0}, Inputs(STUDENT.T.reshape(1, 3, 1, 2), TEACHER.T.reshape(1, 3, 1, 2)), 3.0),
    # samples correlate by 1/2 and 1; the teacher's classes do not change, and so correlate with nothing
    Reference(
        {"gamma": 2.0},
        Inputs(rows([3.0, 2.0, 1.0], [2.0, 3.0, 1.0]).log(), rows([2.0, 3.0, 1.0], [2.0, 3.0, 1.0]).log()),
        0.25 + 2.0,
    ),
    # neither do equal scores
    Reference({"gamma": 3.0}, Inputs(rows([1.0] * 3, [7.0] * 3), TEACHER), 4.0),
)
DIST_MUTANTS = (
    Mutant(
        "swap the factors",
        "scale * beta * within_samples - scale * gamma *",
        "scale * gamma * within_samples - scale * beta *",
    ),
    Mutant("do not centre the samples", "average = 1.0 / student.shape[1]", "average = 0.0"),
    Mutant("do not centre the classes", "student.mean(dim=0), teacher.mean(dim=0), dim=0", "0.0, 0.0, dim=0"),
    Mutant("drop T^2", "scale = temperature**2", "scale = 1.0"),
    Mutant("T instead of T^2", "scale = temperature**2", "scale = temperature"),
    Mutant("forget the temperature", "logits / temperature", "logits"),
    Mutant("sum over the samples", "average, average, dim=1).mean()", "average, average, dim=1).sum()"),
    Mutant("covariance", ".sum(dim=dim) / lengths", ".sum(dim=dim)"),
    Mutant("classes on the last axis", "probabilities.movedim(1, -1).flatten(0, -2)", "probabilities.flatten(0, -2)"),
    Mutant("let the gradient reach the teacher", "teacher_logits.detach()", "teacher_logits"),
    Mutant("detach the student", "upcast(student_logits)", "upcast(student_logits.detach()) + 0 * student_logits"),
)


def dist_by_function(component: DistillationLoss, inputs: Inputs) -> Tensor:
    assert isinstance(component, DISTLoss)
    options = {name: getattr(component, name) for name in ("beta", "gamma", "temperature")}
    return dist_loss(inputs.students[0], inputs.teachers[0], **options)


def dist(name: str, *shape: int) -> Case:
    return Case(
        name,
        DISTLoss,
        lambda: Inputs(random(*shape, seed=10), random(*shape, seed=11)),
        {"beta": 2.0, "temperature": 2.0},
        dist_loss,
        dist_by_function,
        DIST_REFERENCES,
        DIST_MUTANTS,
        bad_calls=((random(*shape, seed=1), random(*shape[:1], 8, *shape[2:], seed=2)),),
        bad_builds=(((8, 10), (8, 100)), ((8, 3, 10), (8, 3, 10)), ((8,), (8,))),
    )


CASES = (dist("dist", 4, 5), dist("dist-dense", 4, 3, 2, 2))
