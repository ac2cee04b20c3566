"""The cases of KD with one temperature for all samples."""

import math
from typing import cast

from torch import Tensor

from lightning_kd.functional import kd_loss
from lightning_kd.losses import DistillationLoss, KDLoss
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
    student, teacher = (cast(Tensor, value) for value in inputs.args)  # the logits; layers would be lists
    options = {name: getattr(component, name) for name in ("temperature", "standardize", "hard")}
    return kd_loss(student, teacher, **options)


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
KD_BINARY = Case(
    "kd-binary",
    KDLoss,
    lambda: Inputs(random(4, 1, seed=7), random(4, 1, seed=8)),
    {"temperature": 2.0, "binary": True},
    kd_loss,
    kd_by_function,
    (
        # Student 1/2, teacher sigmoid(ln 3) = 3/4 at T = 2, in one of two samples: T^2 / 2 times the divergence.
        Reference(
            {"temperature": 2.0, "binary": True}, Inputs(rows([0.0], [5.0]), rows([2 * LN3], [5.0])), 2 * QUARTERS
        ),
    ),
    (Mutant("softmax of a single logit", "if student.shape[1] == 1 and", "if False and"),),
    bad_builds=(((8, 10), (8, 10)),),
)
KD_HARD = Case(
    "kd-hard",
    KDLoss,
    lambda: Inputs(random(4, 5, seed=9), random(4, 5, seed=10)),
    {"temperature": 2.0, "hard": True},
    kd_loss,
    kd_by_function,
    (
        # T = 1: the decision is the second class, and the student gives it 1/4, in one of two samples; ln 1 is 0.
        Reference(
            {"temperature": 1.0, "hard": True},
            Inputs(rows([LN3, 0.0], [0.0, -1e3]), rows([0.0, 0.1], [2.0, 1.0])),
            math.log(4.0) / 2,
        ),
        # T = 2 from twice the logits: T^2 times as much. Of equal scores the first class is the decision.
        Reference(
            {"temperature": 2.0, "hard": True}, Inputs(rows([0.0, 2 * LN3]), rows([5.0, 5.0])), 4 * math.log(4.0)
        ),
        # Three positions of one sample, whose decisions are 0, 1, 1.
        Reference(
            {"temperature": 1.0, "hard": True},
            Inputs(
                rows([LN3, LN3, 0.0, 0.0, 0.0, 0.0]).reshape(1, 2, 1, 3),
                rows([1.0, 0.0, 0.0, 0.0, 1.0, 1.0]).reshape(1, 2, 1, 3),
            ),
            (math.log(4 / 3) + math.log(4.0) + math.log(2.0)) / 3,
        ),
    ),
    (
        Mutant("the least likely class", "teacher.argmax(", "teacher.argmin("),
        Mutant("the student's own decision", "teacher.argmax(", "student.argmax("),
        Mutant("the wrong sign", "entropy = -student", "entropy = student"),
        Mutant("classes on the last axis", "argmax(dim=1, keepdim=True)", "argmax(dim=-1, keepdim=True)"),
        Mutant("ignore the option", "if hard:", "if not hard:"),
        Mutant("the option is not passed on", "hard=self.hard", "hard=False"),
    ),
    match_options={"hard": False},
)

CASES = (KD, KD_MAPS, KD_STANDARDIZED, KD_BINARY, KD_HARD)
