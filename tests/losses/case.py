"""What the conformance suite must know of a loss, and how it makes one."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import ModuleType

import torch
from torch import Tensor

from lightning_kd.losses import DistillationLoss
from lightning_kd.losses.base import LOGITS, StepTensors

Features = Tensor | list[Tensor]


@dataclass(frozen=True)
class Inputs:
    """What a loss is fed: a tensor, or a list of them for several layers; ``extra`` holds target and index."""

    student: Features
    teacher: Features | None = None
    extra: Mapping[str, Tensor] = field(default_factory=dict)
    imitated: frozenset[int] = frozenset()
    """Which of the student's tensors are imitated by the others, so that no gradient reaches them."""
    dataset: tuple[int, Tensor | None] = (0, None)
    """Rows and class ids of the data set, for a loss that needs the index."""
    layers: tuple[str, ...] = ()
    """For a loss that takes a whole step: the name of each tensor in it, the logits' being ``LOGITS``."""

    @property
    def args(self) -> list[Features | StepTensors]:
        if self.layers:
            return [self.step]
        return [self.student] if self.teacher is None else [self.student, self.teacher]

    @property
    def step(self) -> StepTensors:
        """The step of a loss that takes a whole one."""
        students, teachers = (dict(zip(self.layers, side, strict=True)) for side in (self.students, self.teachers))
        return StepTensors(students.pop(LOGITS, None), teachers.pop(LOGITS, None), students, teachers)

    @property
    def students(self) -> list[Tensor]:
        return as_list(self.student)

    @property
    def learning(self) -> list[Tensor]:
        """The student's tensors that a gradient reaches."""
        return [tensor for i, tensor in enumerate(self.students) if i not in self.imitated]

    @property
    def teachers(self) -> list[Tensor]:
        return as_list(self.teacher)

    def map(self, student: Callable[[Tensor], Tensor], extra: Callable[[Tensor], Tensor] | None = None) -> "Inputs":
        """Apply a function to every student and teacher tensor, and another to the extras."""
        changed = {k: extra(v) if extra else v for k, v in self.extra.items()}
        teacher = None if self.teacher is None else _map(student, self.teacher)
        return replace(self, student=_map(student, self.student), teacher=teacher, extra=changed)

    def rows(self, chosen: Callable[[Tensor], Tensor]) -> "Inputs":
        """Choose samples, in all tensors alike."""
        return self.map(chosen, chosen)

    def to(self, dtype: torch.dtype) -> "Inputs":
        """Convert all that is no target or index."""
        return self.map(lambda t: t.to(dtype), lambda t: t.to(dtype) if t.is_floating_point() else t)

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
    module: ModuleType | None = None
    """Whose source is changed, if not that of the loss's own file: a module that the loss's file imports from."""


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
    bad_calls: tuple[tuple[Tensor, ...], ...] = ()
    """Leading arguments of the function that do not match; the error must name their shapes."""
    bad_builds: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...] = ()
    """Student and teacher shapes that ``build`` must refuse, naming both."""
    nonnegative: bool = True
    zero_at_match: bool = True
    """Zero when the teacher's input is the student's (with ``match_options`` on top of the options)."""
    match_options: Mapping[str, object] = field(default_factory=dict)
    permutation_invariant: bool = True
    """Not so for a loss that draws random numbers for each sample."""
    batch_statistics: bool = False
    """A batch normalisation of its own makes a batch in two halves another loss."""
    frozen: str | None = None
    """Beginning of the names of own parameters that the loss itself does not train, but a stage before it."""
    prepare: Callable[[DistillationLoss], object] | None = None
    """What is done to a built component first, so that its state is that of a run under way."""
    slope: bool = True
    """The gradient is the slope of the value; not so where the inputs are fixed teachers of one another."""
    plain_options: bool = True
    """The options are plain data or parts that can be described as such."""
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


def make(
    loss: Callable[..., DistillationLoss], options: Mapping[str, object], inputs: Inputs | None = None
) -> DistillationLoss:
    """Construct a component, yet to be built; one that needs the index learns about the data set of the inputs."""
    return introduce(loss(**copy.deepcopy(dict(options))), inputs)


def introduce(component: DistillationLoss, inputs: Inputs | None) -> DistillationLoss:
    """Tell a component that needs the index about the data set of the inputs."""
    if component.needs_index and inputs is not None:
        component.set_dataset(*inputs.dataset)
    return component


def build(
    loss: type[DistillationLoss], options: Mapping[str, object], inputs: Inputs, dtype: torch.dtype = torch.float64
) -> DistillationLoss:
    """Construct a component, build it for the inputs' shapes, and give its parameters seeded values."""
    component = make(loss, options, inputs)
    torch.manual_seed(1)
    component.build(*shapes(component, inputs))
    return component.to(dtype)


def shapes(
    component: DistillationLoss, inputs: Inputs
) -> tuple[dict[str, tuple[int, ...]], dict[str, tuple[int, ...]]]:
    """The shapes that ``build`` gets for these inputs."""
    students, teachers = ([tuple(t.shape) for t in side] for side in (inputs.students, inputs.teachers))
    names = (component.student_layers or (LOGITS,), component.teacher_layers or (LOGITS,))
    if inputs.layers:
        names = (inputs.layers, inputs.layers)
    students, teachers = dict(zip(names[0], students, strict=False)), dict(zip(names[1], teachers, strict=False))
    if "student_logits" in inputs.extra:
        students[LOGITS] = tuple(inputs.extra["student_logits"].shape)
    return students, teachers


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


def check_float32(
    function: Callable[..., Tensor], inputs: Sequence[Tensor], *, learning: int = 1, tolerance: float = 1e-4
) -> None:
    """Compare value and gradients of the first inputs in float32 with those of float64 for the same numbers."""
    found = []
    for dtype in (torch.float64, torch.float32):
        leaves = [x.float().to(dtype).requires_grad_(i < learning) for i, x in enumerate(inputs)]
        value = function(*leaves)
        value.backward()
        found.append([value.detach().double(), *(leaf.grad.double() for leaf in leaves[:learning])])
    for exact, single in zip(*found, strict=True):
        assert exact.abs().max() > 0
        assert (single - exact).abs().max() <= tolerance * exact.abs().max()


def tight(*size: int, seed: int, offset: float = 5.0) -> Tensor:
    """Seeded features that lie close together and far from zero."""
    return offset + 1e-3 * random(*size, seed=seed)
