"""The cases of the response family."""

import math

import torch
from torch import Tensor

from lightning_kd.functional import dist_loss, dkd_loss, kd_loss
from lightning_kd.losses import AdaptiveTemperature, DistillationLoss, DISTLoss, DKDLoss, KDLoss
from tests.losses.case import Case, Inputs, Mutant, Reference, random, rows

LN3 = math.log(3.0)
# Student p = (1/2, 1/2), teacher p = (3/4, 1/4): KL(t || s) = 3/4 ln(3/2) + 1/4 ln(1/2).
QUARTERS = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
KD_REFERENCES = (
    # T = 1, (2, 1) against (1, 2): p_1 - p_2 = tanh(1/2) both ways, and the log ratio is 1: tanh(1/2) = 0.46212.
    Reference({"temperature": 1.0}, Inputs(rows([2.0, 1.0]), rows([1.0, 2.0])), 0.46211715726000973),
    # The same probabilities at T = 2 from twice the logits, in one of two samples: T^2 / 2 times the divergence.
    Reference(
        {"temperature": 2.0}, Inputs(rows([0.0, 0.0], [5.0, 1.0]), rows([2 * LN3, 0.0], [5.0, 1.0])), 2 * QUARTERS
    ),
    # One sample of three positions, the last two alike: a third of KL(t || s) for t = (1/2, 1/2), s = (3/4, 1/4).
    Reference(
        {"temperature": 1.0},
        Inputs(rows([LN3, 0.0, 0.0, 0.0, 0.0, 0.0]).reshape(1, 2, 1, 3), rows([0.0] * 6).reshape(1, 2, 1, 3)),
        (0.5 * math.log(2.0 / 3.0) + 0.5 * math.log(2.0)) / 3,
    ),
)
# Two classes standardise to +-1/sqrt(2), whatever they are: (3, 1) and (-1, 9) become mirror images.
# With gap d = sqrt(2) / T the divergence of mirror images is d tanh(d / 2). Both numbers leave the 1e-7 out.
KD_STANDARDIZED_REFERENCES = (
    Reference(
        {"temperature": 2.0, "standardize": True},
        Inputs(rows([3.0, 1.0]), rows([-1.0, 9.0])),
        4.0 * math.sqrt(0.5) * math.tanh(math.sqrt(0.125)),
        tolerance=1e-6,
    ),
    # (0, 1, 2) has mean 1 and unbiased deviation 1, so it becomes (-1, 0, 1); the student's equal logits become 0.
    Reference(
        {"temperature": 1.0, "standardize": True},
        Inputs(rows([7.0, 7.0, 7.0]), rows([0.0, 1.0, 2.0])),
        math.log(3.0) + (math.e - 1 / math.e) / (math.e + 1 + 1 / math.e) - math.log(math.e + 1 + 1 / math.e),
        tolerance=1e-6,
    ),
    # +-1e-7 has deviation sqrt(2) 1e-7 and becomes +-1 / (sqrt(2) + 1) = +-a, because 1e-7 is added to the deviation.
    # Against equal logits: ln 2 minus the entropy of tanh(a) = p_1 - p_2, that is a tanh(a) - ln cosh(a).
    Reference(
        {"temperature": 1.0, "standardize": True},
        Inputs(rows([0.0, 0.0]), rows([1e-7, -1e-7])),
        (math.sqrt(2) - 1) * math.tanh(math.sqrt(2) - 1) - math.log(math.cosh(math.sqrt(2) - 1)),
    ),
)
KD_MUTANTS = (
    Mutant("drop T^2", "temperature**2 * ", ""),
    Mutant("T instead of T^2", "temperature**2", "temperature"),
    Mutant("swap the two distributions", "F.kl_div(student, teacher,", "F.kl_div(teacher, student,"),
    Mutant("mean over classes too", "* student.shape[1] / student.numel()", "/ student.numel()"),
    Mutant("sum over the batch", "temperature**2 * student.shape[1] / student.numel()", "temperature**2"),
    Mutant("mean over the batch, sum over positions", "student.shape[1] / student.numel()", "1 / student.shape[0]"),
    Mutant("probabilities for log-probabilities", "teacher = F.log_softmax(", "teacher = F.softmax("),
    Mutant("forget the temperature of the teacher", "teacher / temperature", "teacher"),
    Mutant("multiply by the temperature", "student / temperature", "student * temperature"),
    Mutant("classes on the last axis", "student / temperature, dim=1", "student / temperature, dim=-1"),
    Mutant("let the gradient reach the teacher", "teacher_logits.detach()", "teacher_logits"),
    Mutant("detach the student", "upcast(student_logits)", "upcast(student_logits.detach()) + 0 * student_logits"),
)
KD_STANDARDIZED_MUTANTS = (
    Mutant("biased deviation", "correction=1", "correction=0"),
    Mutant("variance for deviation", ".sqrt()", ""),
    Mutant("nothing added to the deviation", "(_STD_EPS + deviation)", "deviation"),
    Mutant(
        "standardise the student only", "_standardize(student), _standardize(teacher)", "_standardize(student), teacher"
    ),
    Mutant(
        "standardise the teacher only", "_standardize(student), _standardize(teacher)", "student, _standardize(teacher)"
    ),
    Mutant("ignore the option", "if standardize:", "if not standardize:"),
)


def kd_by_function(component: DistillationLoss, inputs: Inputs) -> Tensor:
    assert isinstance(component, KDLoss)
    return kd_loss(*inputs.args, temperature=component.temperature, standardize=component.standardize)  # type: ignore[arg-type]


KD = Case(
    "kd",
    KDLoss,
    lambda: Inputs(random(4, 5, seed=1), random(4, 5, seed=2)),
    {"temperature": 3.0},
    kd_loss,
    kd_by_function,
    KD_REFERENCES,
    KD_MUTANTS,
    bad_calls=(
        (random(4, 5, seed=1), random(4, 7, seed=2)),
        (random(4, 5, seed=1), random(3, 5, seed=2)),
        (random(4, 5, 2, 2, seed=1), random(4, 5, 2, 3, seed=2)),
        (random(4, 5, seed=1), random(4, 5, 2, 2, seed=2)),
        (random(4, 3, 5, seed=1), random(4, 3, 5, seed=2)),
        (random(4, seed=1), random(4, seed=2)),
    ),
    bad_builds=(((8, 10), (8, 100)), ((8, 10, 4, 4), (8, 10, 8, 8)), ((8, 3, 10), (8, 3, 10)), ((8,), (8,))),
)
KD_MAPS = Case(
    "kd-dense",
    KDLoss,
    lambda: Inputs(random(4, 3, 2, 2, seed=3), random(4, 3, 2, 2, seed=4)),
    {},
    kd_loss,
    kd_by_function,
    KD_REFERENCES,
)
KD_STANDARDIZED = Case(
    "kd-standardized",
    KDLoss,
    lambda: Inputs(random(4, 6, seed=5), 3 * random(4, 6, seed=6) + 1),
    {"temperature": 2.0, "standardize": True},
    kd_loss,
    kd_by_function,
    KD_STANDARDIZED_REFERENCES,
    KD_STANDARDIZED_MUTANTS,
    bad_builds=(((8, 10), (8, 100)), ((8, 1), (8, 1))),
)

# (9, 1) / 10 is .8 of the way from an undecided teacher to a certain one: T = 1 + 1.25 * .8 = 2, and leaves (3, 1) / 4.
CONFIDENT = {"temperature": AdaptiveTemperature("confidence", low=1.0, high=2.25)}
# Right: T = 2, wrong: T = 3, no label: T = 2.5; each leaves (3, 1) / 4.
CORRECT = {"temperature": AdaptiveTemperature("correctness", low=2.0, high=3.0)}
KD_ADAPTIVE_REFERENCES = (
    Reference(CONFIDENT, Inputs(rows([0.0, 0.0]), rows([2 * LN3, 0.0])), 4 * QUARTERS),
    # the second is undecided, T = 1: the divergence of (e, 1) / (e + 1) from (1, 1) / 2
    Reference(
        CONFIDENT,
        Inputs(rows([0.0, 0.0], [1.0, 0.0]), rows([2 * LN3, 0.0], [0.0, 0.0])),
        (4 * QUARTERS + math.log((math.e + 1) / 2) - 0.5) / 2,
    ),
    Reference(
        CORRECT,
        Inputs(
            rows([0.0, 0.0], [0.0, 0.0], [0.0, 0.0]),
            rows([2 * LN3, 0.0], [3 * LN3, 0.0], [2.5 * LN3, 0.0]),
            {"target": torch.tensor([0, 1, -100])},
        ),
        (4 + 9 + 6.25) / 3 * QUARTERS,
    ),
)
KD_ADAPTIVE_MUTANTS = (
    Mutant("T instead of T^2", "temperature.square()", "temperature"),
    Mutant("sum over the batch", "temperature.square()).mean()", "temperature.square()).sum()"),
    Mutant(
        "T^2 of the batch", "(divergence * temperature.square()).mean()", "divergence.mean() * (temperature**2).mean()"
    ),
    Mutant(
        "mean over the classes", 'reduction="none", log_target=True).sum(', 'reduction="none", log_target=True).mean('
    ),
)


def kd_adaptive_by_function(component: DistillationLoss, inputs: Inputs) -> Tensor:
    assert isinstance(component, KDLoss)
    assert isinstance(component.temperature, AdaptiveTemperature)
    temperature = component.temperature(inputs.teachers[0], inputs.extra.get("target"))
    return kd_loss(inputs.students[0], inputs.teachers[0], temperature=temperature)


def kd_adaptive(by: str, teacher: Tensor, **extra: Tensor) -> Case:
    return Case(
        f"kd-by-{by}-{teacher.ndim}d",
        KDLoss,
        lambda: Inputs(random(*teacher.shape, seed=7), teacher, extra),
        {"temperature": AdaptiveTemperature(by, low=2.0, high=5.0)},  # type: ignore[arg-type]
        kd_loss,
        kd_adaptive_by_function,
        KD_ADAPTIVE_REFERENCES,
        KD_ADAPTIVE_MUTANTS,
    )


# Weights (4, 3, 1) of three classes and the first as target: (1/2, 1/2) against (1/3, 2/3) of a student that knows
# nothing, and (3/4, 1/4) against (1/2, 1/2) for the others.
DKD_TEACHER = [math.log(4.0), LN3, 0.0]
TARGET_PART = 0.5 * math.log(1.5) + 0.5 * math.log(0.75)
ONCE = {"temperature": 1.0}


def labels(*ids: int) -> dict[str, Tensor]:
    return {"target": torch.tensor(ids)}


DKD_REFERENCES = (
    Reference({**ONCE, "beta": 2.0}, Inputs(rows([0.0] * 3), rows(DKD_TEACHER), labels(0)), TARGET_PART + 2 * QUARTERS),
    # at T = 2 from twice the logits, in one of two samples that have a label, another alike, a third without a label
    Reference(
        {"temperature": 2.0, "alpha": 3.0, "beta": 0.5},
        Inputs(
            rows([0.0] * 3, [1.0, 5.0, 2.0], [7.0, 0.0, 0.0]),
            rows([2 * z for z in DKD_TEACHER], [1.0, 5.0, 2.0], [0.0, 0.0, 1.0]),
            labels(0, 2, -100),
        ),
        4 * (3 * TARGET_PART + 0.5 * QUARTERS) / 2,
    ),
    # two positions of one sample, classes on axis 1
    Reference(
        {**ONCE, "ignore_index": 255},
        Inputs(
            torch.stack([rows([0.0] * 3), rows([1.0, 0.0, 2.0])], dim=2).reshape(1, 3, 1, 2),
            torch.stack([rows(DKD_TEACHER), rows([0.0, 0.0, 9.0])], dim=2).reshape(1, 3, 1, 2),
            {"target": torch.tensor([[[0, 255]]])},
        ),
        TARGET_PART + 8 * QUARTERS,
    ),
    # two classes: the target against the other, and nothing more
    Reference(ONCE, Inputs(rows([0.0, 0.0]), rows([LN3, 0.0]), labels(1)), QUARTERS),
)
DKD_MUTANTS = (
    Mutant(
        "swap the two distributions",
        "F.kl_div(student_others, teacher_others",
        "F.kl_div(teacher_others, student_others",
    ),
    Mutant("drop T^2", " * temperature**2", ""),
    Mutant("the target among the others", "logits.scatter(1, ids, torch.finfo(logits.dtype).min / 2)", "logits"),
    Mutant("swap the factors", "alpha * of_target + beta * of_others", "beta * of_target + alpha * of_others"),
    Mutant("the others as in plain KD", "beta * of_others", "beta * (-teacher_odds).sigmoid() * of_others"),
    Mutant("the target alone", "return yes + no", "return yes"),
    Mutant(
        "count what has no label",
        "mean_over_labelled(alpha * of_target + beta * of_others, labelled)",
        "(alpha * of_target + beta * of_others).mean()",
    ),
    Mutant("forget the temperature of the teacher", "teacher / temperature", "teacher"),
    Mutant("let the gradient reach the teacher", "teacher_logits.detach()", "teacher_logits"),
    Mutant("detach the student", "upcast(student_logits)", "upcast(student_logits.detach()) + 0 * student_logits"),
)


def dkd_by_function(component: DistillationLoss, inputs: Inputs) -> Tensor:
    assert isinstance(component, DKDLoss)
    options = {name: getattr(component, name) for name in ("alpha", "beta", "temperature", "ignore_index")}
    return dkd_loss(inputs.students[0], inputs.teachers[0], inputs.extra["target"], **options)


def dkd(name: str, *shape: int) -> Case:
    target = torch.arange(math.prod(shape) // shape[1]).reshape(shape[0], *shape[2:]) % shape[1]
    return Case(
        name,
        DKDLoss,
        lambda: Inputs(random(*shape, seed=8), random(*shape, seed=9), {"target": target}),
        {"temperature": 2.0, "beta": 3.0},
        dkd_loss,
        dkd_by_function,
        DKD_REFERENCES,
        DKD_MUTANTS,
        bad_calls=((random(*shape, seed=1), random(*shape[:1], 8, *shape[2:], seed=2)),),
        bad_builds=(((8, 10), (8, 100)), ((8, 3, 10), (8, 3, 10)), ((8,), (8,))),
    )


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


CASES = (
    KD,
    KD_MAPS,
    KD_STANDARDIZED,
    kd_adaptive("confidence", 2 * random(4, 5, seed=12)),
    kd_adaptive("entropy", 2 * random(4, 3, 2, 1, seed=13)),
    kd_adaptive("correctness", random(4, 5, seed=14), target=torch.tensor([3, 0, 1, -100])),
    dkd("dkd", 4, 5),
    dkd("dkd-dense", 4, 3, 2, 2),
    dist("dist", 4, 5),
    dist("dist-dense", 4, 3, 2, 2),
)
