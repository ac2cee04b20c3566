"""One row of facts for every exported loss; the conformance suite does the rest.

To add a loss: write a ``Case`` with its options, its inputs, two or three numbers derived by hand, the inputs that it
must refuse, and the mistakes that its numbers must reveal, and put it into ``CASES``.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lightning_kd.functional import hint_loss, kd_loss
from lightning_kd.losses import DistillationLoss, HintLoss, KDLoss
from lightning_kd.losses.base import LOGITS
from lightning_kd.projectors import ConvProjector, IdentityProjector

Features = Tensor | list[Tensor]


@dataclass(frozen=True)
class Inputs:
    """What a loss is fed: a tensor, or a list of them for several layers; ``extra`` holds target and index."""

    student: Features
    teacher: Features | None = None
    extra: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def args(self) -> list[Features]:
        return [self.student] if self.teacher is None else [self.student, self.teacher]

    @property
    def students(self) -> list[Tensor]:
        return as_list(self.student)

    @property
    def teachers(self) -> list[Tensor]:
        return as_list(self.teacher)

    def map(self, student: Callable[[Tensor], Tensor], extra: Callable[[Tensor], Tensor] | None = None) -> "Inputs":
        """Apply a function to every student and teacher tensor, and another to the extras."""
        changed = {k: extra(v) if extra else v for k, v in self.extra.items()}
        return Inputs(
            _map(student, self.student), None if self.teacher is None else _map(student, self.teacher), changed
        )

    def rows(self, chosen: Callable[[Tensor], Tensor]) -> "Inputs":
        """Choose samples, in all tensors alike."""
        return self.map(chosen, chosen)

    def fresh(self) -> "Inputs":
        """Copy the tensors to leaves; those of the student ask for a gradient."""
        copy = self.map(lambda t: t.detach().clone(), torch.clone)
        for tensor in copy.students:
            tensor.requires_grad_()
        return copy


@dataclass(frozen=True)
class Reference:
    """A number that was derived by hand: the comment or the expression says how."""

    options: Mapping[str, object]
    inputs: Inputs
    expected: float
    parameters: Mapping[str, Tensor] = field(default_factory=dict)
    """Values given to the loss's own parameters after ``build``."""
    tolerance: float = 1e-10
    """Relative; wider only where the derivation leaves something small out."""


@dataclass(frozen=True)
class Mutant:
    """A plausible mistake: ``old`` in the source of the loss's file is replaced by ``new``; a number must change."""

    name: str
    old: str
    new: str


@dataclass(frozen=True)
class Case:
    """What the conformance suite must know of a loss; several rows may show one loss with other options."""

    name: str
    loss: type[DistillationLoss]
    inputs: Callable[[], Inputs]
    """Seeded float64 inputs with an even batch of at least 4."""
    options: Mapping[str, object] = field(default_factory=dict)
    function: Callable[..., Tensor] | None = None
    """The public formula; ``None`` only for a loss that is made of others."""
    by_function: Callable[[DistillationLoss, Inputs], Tensor] | None = None
    """The value of the built component, computed with the public formula."""
    references: tuple[Reference, ...] = ()
    mutants: tuple[Mutant, ...] = ()
    bad_calls: tuple[tuple[Tensor, Tensor], ...] = ()
    """First two arguments of the function that do not match; the error must name both shapes."""
    bad_builds: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...] = ()
    """Student and teacher shapes that ``build`` must refuse, naming both."""
    nonnegative: bool = True
    zero_at_match: bool = True
    """Zero when the teacher's input is the student's (with ``match_options`` on top of the options)."""
    match_options: Mapping[str, object] = field(default_factory=dict)
    permutation_invariant: bool = True
    single_sample: bool = True
    """Finite for a batch of 1."""
    extreme: bool = True
    """Finite value and gradient for inputs of 0, 1e-8 and 1e4."""
    tolerance: Mapping[torch.dtype, float] = field(default_factory=dict)
    """Relative tolerances that are not those of ``TOLERANCE``."""

    def __str__(self) -> str:
        return self.name


TOLERANCE = {torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 3e-2}
"""Relative to the float64 value; 16-bit numbers have 11 and 8 significant bits."""


def make(loss: Callable[..., DistillationLoss], options: Mapping[str, object]) -> DistillationLoss:
    """Construct a component, yet to be built."""
    return loss(**options)


def build(
    loss: type[DistillationLoss], options: Mapping[str, object], inputs: Inputs, dtype: torch.dtype = torch.float64
) -> DistillationLoss:
    """Construct a component, build it for the inputs' shapes, and give its parameters seeded values."""
    component = make(loss, options)
    torch.manual_seed(1)
    component.build(*shapes(component, inputs))
    return component.to(dtype)


def shapes(
    component: DistillationLoss, inputs: Inputs
) -> tuple[dict[str, tuple[int, ...]], dict[str, tuple[int, ...]]]:
    """The shapes that ``build`` gets for these inputs."""
    students, teachers = ([tuple(t.shape) for t in side] for side in (inputs.students, inputs.teachers))
    names = (component.student_layers or (LOGITS,), component.teacher_layers or (LOGITS,))
    return dict(zip(names[0], students, strict=False)), dict(zip(names[1], teachers, strict=False))


def as_list(features: Features | None) -> list[Tensor]:
    if features is None:
        return []
    return [features] if isinstance(features, Tensor) else features


def random(*size: int, seed: int) -> Tensor:
    """Seeded float64 normal numbers."""
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rows(*values: list[float]) -> Tensor:
    """A float64 matrix."""
    return torch.tensor(values, dtype=torch.float64)


def _map(function: Callable[[Tensor], Tensor], features: Features) -> Features:
    return function(features) if isinstance(features, Tensor) else [function(f) for f in features]


# --- response -------------------------------------------------------------------------------------------------------

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

# --- feature --------------------------------------------------------------------------------------------------------

AS_IT_IS = {"student": "a", "teacher": "b", "projector": IdentityProjector()}
HINT_REFERENCES = (
    # ((1-3)^2 + (-2-1)^2 + 0 + (4-0)^2) / 4 = (4 + 9 + 0 + 16) / 4
    Reference(AS_IT_IS, Inputs(rows([1.0, -2.0], [5.0, 4.0]), rows([3.0, 1.0], [5.0, 0.0])), 7.25),
    # The student's 1x2 map (1, 4) is pooled to 2.5; the teacher's -1 stays: 3.5^2.
    Reference(
        AS_IT_IS,
        Inputs(rows([1.0, 4.0]).reshape(1, 1, 1, 2), torch.full((1, 1, 1, 1), -1.0, dtype=torch.float64)),
        12.25,
    ),
    # Student 1x2 (1, 3), teacher 2x1 (0, 4): each is the larger along one axis, both become 2, the distance is 0.
    # With the second channel 1, 1 against 2, 2 the mean over the channels is 1/2.
    Reference(
        AS_IT_IS,
        Inputs(rows([1.0, 3.0, 1.0, 1.0]).reshape(1, 2, 1, 2), rows([0.0, 4.0, 2.0, 2.0]).reshape(1, 2, 2, 1)),
        0.5,
    ),
    # Two pairs, 4 and 9, are added.
    Reference(
        {"student": ["a", "b"], "teacher": ["c", "d"], "projector": IdentityProjector()},
        Inputs([rows([1.0]), rows([2.0])], [rows([3.0]), rows([5.0])]),
        13.0,
    ),
    # A projector W = (2, -1), offset 1: 2 * 3 - 1 * 4 + 1 = 3 against 5.
    Reference(
        {"student": "a", "teacher": "b"},
        Inputs(rows([3.0, 4.0]), rows([5.0])),
        4.0,
        {"projectors.0.linear.weight": rows([2.0, -1.0]), "projectors.0.linear.bias": torch.ones(1).double()},
    ),
)
HINT_MUTANTS = (
    Mutant("the paper's half", "return F.mse_loss(student, teacher)", "return F.mse_loss(student, teacher) / 2"),
    Mutant("sum of squares", "F.mse_loss(student, teacher)", "F.mse_loss(student, teacher, reduction='sum')"),
    Mutant("absolute distance", "F.mse_loss(", "F.l1_loss("),
    Mutant("maximum for average", "F.adaptive_avg_pool2d(", "F.adaptive_max_pool2d("),
    Mutant("mean over pairs", "for projector, s, t in pairs]).sum()", "for projector, s, t in pairs]).mean()"),
    Mutant("every pair to the first teacher", "hint_loss(projector(s), t)", "hint_loss(projector(s), teachers[0])"),
    Mutant("let the gradient reach the teacher", "teacher.detach()", "teacher"),
    Mutant("detach the student", "hint_loss(projector(s), t)", "hint_loss(projector(s.detach() + 0 * s), t)"),
)


def hint_by_function(component: DistillationLoss, inputs: Inputs) -> Tensor:
    assert isinstance(component, HintLoss)
    triples = zip(component.projectors, inputs.students, inputs.teachers, strict=True)
    return sum((hint_loss(p(s), t) for p, s, t in triples), torch.zeros((), dtype=torch.float64))


HINT = Case(
    "hint",
    HintLoss,
    lambda: Inputs(random(4, 3, seed=1), random(4, 5, seed=2)),
    {"student": "a", "teacher": "b"},
    hint_loss,
    hint_by_function,
    HINT_REFERENCES,
    HINT_MUTANTS,
    bad_calls=(
        (random(4, 3, seed=1), random(2, 3, seed=2)),
        (random(4, 3, seed=1), random(4, 6, seed=2)),
        (random(4, 3, seed=1), random(4, 3, 2, 2, seed=2)),
        (random(4, 3, 5, seed=1), random(4, 2, 5, seed=2)),
        (random(4, 3, 2, 2, seed=1), random(4, 5, 2, 2, seed=2)),
    ),
    bad_builds=(
        ((8, 16), (8, 16, 4, 4)),
        ((8, 10, 16), (8, 11, 16)),
        ((8,), (8,)),
        ((8, 2, 2, 2, 2), (8, 2, 2, 2, 2)),
    ),
    match_options={"projector": IdentityProjector()},
)
HINT_MAPS = Case(
    "hint-maps",
    HintLoss,
    lambda: Inputs(
        [random(4, 3, 4, 4, seed=1), random(4, 2, 2, 4, seed=2)],
        [random(4, 5, 2, 2, seed=3), random(4, 3, 4, 2, seed=4)],
    ),
    {"student": ["a", "b"], "teacher": ["c", "d"], "projector": ConvProjector(bias=False, activation=True)},
    hint_loss,
    hint_by_function,
    HINT_REFERENCES,
    match_options={"projector": IdentityProjector()},
)
HINT_TOKENS = Case(
    "hint-tokens",
    HintLoss,
    lambda: Inputs(random(4, 3, 2, seed=1), random(4, 3, 5, seed=2)),
    {"student": "a", "teacher": "b"},
    hint_loss,
    hint_by_function,
    HINT_REFERENCES,
    match_options={"projector": IdentityProjector()},
)

HELPERS: frozenset[str] = frozenset()
"""Public functions that are no losses; the file of their family tests them."""

CASES: tuple[Case, ...] = (KD, KD_MAPS, KD_STANDARDIZED, HINT, HINT_MAPS, HINT_TOKENS)
