"""What every exported loss must satisfy; a loss without a ``Case`` fails here."""

import copy
import gc
import importlib
import inspect
import io
import json
import pickle
import pkgutil
import re
import sys
import types
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import lightning_kd.losses
from lightning_kd import functional
from lightning_kd.configurable import describe, restore
from lightning_kd.losses import DistillationLoss
from lightning_kd.losses.base import StepTensors
from tests.losses.case import TOLERANCE, Case, Inputs, Mutant, build, introduce, make, shapes
from tests.losses.cases import CASES, HELPERS

HALF = (torch.float16, torch.bfloat16)


def of(chosen: Callable[[Case], bool] = lambda _: True) -> pytest.MarkDecorator:
    """Run a test for every case of which something holds."""
    return pytest.mark.parametrize("case", [case for case in CASES if chosen(case)], ids=str)


def exported_losses() -> list[type[DistillationLoss]]:
    return [v for v in vars(lightning_kd.losses).values() if _is_concrete_loss(v)]


def exported_functions() -> list[Callable[..., Tensor]]:
    return [v for v in vars(functional).values() if inspect.isfunction(v)]


def missing_cases(
    losses: Iterable[type[DistillationLoss]], functions: Iterable[Callable[..., Tensor]], cases: Iterable[Case]
) -> list[str]:
    """Name the losses and functions that no case covers."""
    cases = list(cases)
    known = {case.function for case in cases}
    uncovered: list[Callable[..., object]] = [loss for loss in losses if loss not in {case.loss for case in cases}]
    uncovered += [f for f in functions if f not in known and f.__name__ not in HELPERS]
    return [thing.__name__ for thing in uncovered]


def _is_concrete_loss(thing: object) -> bool:
    return isinstance(thing, type) and issubclass(thing, DistillationLoss) and not inspect.isabstract(thing)


def _memory(component: DistillationLoss) -> dict[str, Tensor]:
    """What a loss itself remembers, beside what its layers do."""
    return {name: own for name, own in component._buffers.items() if own is not None and own.is_floating_point()}


def _component(case: Case, dtype: torch.dtype = torch.float64) -> tuple[DistillationLoss, Inputs]:
    inputs = case.inputs()
    component = build(case.loss, case.options, inputs, dtype)
    if case.frozen is not None:
        for name, parameter in component.named_parameters():
            parameter.requires_grad_(not name.startswith(case.frozen))
    if case.prepare is not None:
        case.prepare(component)
    return component, inputs.to(dtype).fresh()


def _value(component: Callable[..., object], inputs: Inputs) -> Tensor:
    torch.manual_seed(3)  # for losses that draw
    value = component(*inputs.args, **inputs.extra)
    assert isinstance(value, Tensor)
    return value


def _gradients(component: DistillationLoss, inputs: Inputs) -> list[Tensor]:
    _value(component, inputs).backward()
    own = [p.grad for p in component.parameters() if p.requires_grad]
    gradients = [g for g in [*[s.grad for s in inputs.learning], *own] if g is not None]
    assert len(gradients) == len(inputs.learning) + len(own)
    assert all(inputs.students[i].grad is None for i in inputs.imitated)
    return gradients


def _same(ours: Tensor, theirs: Tensor, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance, check_dtype=False)


# --- every loss has a case, and every case says enough ---------------------------------------------------------------


def test_every_exported_loss_and_function_has_a_case() -> None:
    assert missing_cases(exported_losses(), exported_functions(), CASES) == []


def test_a_loss_or_function_without_a_case_is_reported() -> None:
    class ForgottenLoss(DistillationLoss):
        def forward(self, student: Tensor) -> Tensor:
            return student.sum()

    def forgotten_loss(student: Tensor) -> Tensor:
        return student.sum()

    found = missing_cases([*exported_losses(), ForgottenLoss], [*exported_functions(), forgotten_loss], CASES)
    assert found == ["ForgottenLoss", "forgotten_loss"]


def test_every_concrete_loss_of_the_package_is_exported() -> None:
    for module in pkgutil.walk_packages(lightning_kd.losses.__path__, "lightning_kd.losses."):
        for name, thing in vars(importlib.import_module(module.name)).items():
            if _is_concrete_loss(thing):
                assert getattr(lightning_kd.losses, name, None) is thing, f"{name} is not exported"


@pytest.mark.parametrize("loss", exported_losses(), ids=lambda loss: loss.__name__)
def test_the_tests_of_a_loss_lie_as_its_file_does(loss: type[DistillationLoss]) -> None:
    """``losses/<kind>/<method>.py`` is tested by ``<kind>/test_<method>.py``, with ``<kind>/cases/<method>.py``."""
    *kind, method = loss.__module__.removeprefix("lightning_kd.losses.").split(".")
    folder = Path(__file__).parent.joinpath(*kind)
    assert (folder / f"test_{method}.py").is_file()
    cases = importlib.import_module(".".join(["tests.losses", *kind, "cases", method]))
    assert loss in {case.loss for case in cases.CASES}


@pytest.mark.parametrize("loss", exported_losses(), ids=lambda loss: loss.__name__)
def test_the_cases_of_a_loss_are_demanding(loss: type[DistillationLoss]) -> None:
    own = [case for case in CASES if case.loss is loss]
    assert all(case.references for case in own)
    assert sum(len(case.mutants) for case in own) >= 4
    for case in own:
        assert all(len(t) % 2 == 0 and len(t) >= 4 and t.dtype == torch.float64 for t in case.inputs().students)


# --- value -----------------------------------------------------------------------------------------------------------


def check_references(case: Case, loss: type[DistillationLoss]) -> None:
    """Compare with the numbers derived by hand; the gradient reaches the student alone."""
    for reference in case.references:
        component = build(loss, reference.options, reference.inputs)
        component.load_state_dict({**component.state_dict(), **reference.parameters})
        inputs = reference.inputs.fresh()
        for teacher in inputs.teachers:
            teacher.requires_grad_()
        value = _value(component, inputs)
        assert value.item() == pytest.approx(reference.expected, rel=reference.tolerance, abs=1e-12)
        value.backward()
        assert all(teacher.grad is None for teacher in inputs.teachers)
        if reference.expected:
            assert any(student.grad is not None and student.grad.any() for student in inputs.students)


@of()
def test_equals_the_numbers_derived_by_hand(case: Case) -> None:
    check_references(case, case.loss)


@pytest.fixture(scope="module")
def no_mutant_stays() -> Iterator[None]:
    """jsonargparse offers every class under a base that is alive, and a class stays so until garbage is collected."""
    yield
    gc.collect()


@pytest.mark.usefixtures("no_mutant_stays")
@pytest.mark.parametrize(("case", "mutant"), [pytest.param(c, m, id=f"{c}-{m.name}") for c in CASES for m in c.mutants])
def test_the_numbers_reveal_a_mistake(case: Case, mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    """The source of the loss with one mistake in it must contradict a number."""
    own = inspect.getmodule(case.loss)
    assert own is not None
    changed = own if mutant.module is None else mutant.module
    source = inspect.getsource(changed)
    assert mutant.old in source, "the mutant is out of date"
    mistaken = _executed(changed.__name__, source.replace(mutant.old, mutant.new))
    if changed is not own:
        monkeypatch.setitem(sys.modules, changed.__name__, mistaken)  # what the loss's file imports from
        mistaken = _executed(own.__name__, inspect.getsource(own))
    with pytest.raises(AssertionError):
        check_references(case, getattr(mistaken, case.loss.__name__))


def _executed(name: str, source: str) -> types.ModuleType:
    """Return a module made of the source."""
    module = types.ModuleType("mutant_of_" + name)
    exec(compile(source, module.__name__, "exec"), vars(module))
    return module


@pytest.mark.parametrize("temperature", [20.0, 100.0])
@pytest.mark.parametrize("function", [functional.kd_loss, functional.dkd_loss])
def test_a_high_temperature_keeps_sign_and_digits(function: Callable[..., Tensor], temperature: float) -> None:
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(64, 10, generator=generator)
    teacher = student + 0.01 * torch.randn(64, 10, generator=generator)
    target = [torch.arange(64) % 10] if function is functional.dkd_loss else []
    single = function(student, teacher, *target, temperature=temperature)
    exact = function(student.double(), teacher.double(), *target, temperature=temperature)
    assert single.dtype == torch.float32
    assert single.item() == pytest.approx(exact.item(), rel=1e-4)
    assert single > 0


SCALE_FREE = {
    "at": functional.attention_transfer_loss,
    "sp": functional.similarity_preserving_loss,
    "ickd": functional.ickd_loss,
    "nst": functional.nst_loss,
    "rkd": functional.rkd_loss,
    "cc": functional.cc_loss,
    "pkt": lambda s, t: functional.pkt_loss(s.flatten(1), t.flatten(1)),
    "info_nce": lambda s, t: functional.info_nce_loss(s.flatten(1), t.flatten(1)),
}


@pytest.mark.parametrize("name", SCALE_FREE)
def test_large_features_are_no_silent_zero(name: str) -> None:
    """Of a formula in which the scale makes no difference; beyond the largest number the loss is NaN, which is told."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(4, 4, 2, 2, generator=generator) for _ in range(2))
    plain = SCALE_FREE[name](student, teacher).item()
    large = (1e15 * student).requires_grad_()
    value = SCALE_FREE[name](large, 1e15 * teacher)
    value.backward()
    assert value.item() == pytest.approx(plain, rel=1e-4)
    assert large.grad is not None
    assert large.grad.any()
    huge = SCALE_FREE[name](1e25 * student, 1e25 * teacher).item()
    assert huge != huge or huge == pytest.approx(plain, rel=1e-4)  # NaN, or right


COMPUTED_TOGETHER = (
    lightning_kd.losses.RKDLoss,
    lightning_kd.losses.NSTLoss,
    lightning_kd.losses.KDSVDLoss,
    lightning_kd.losses.CRDLoss,
    lightning_kd.losses.TokenKDLoss,
)
"""Losses whose gradient is computed together with their value."""


@of(lambda case: case.function is not None and not case.inputs().layers)
def test_a_gradient_is_not_differentiated_twice_in_silence(case: Case) -> None:
    component, inputs = _component(case)
    value = _value(component, inputs)
    if case.loss in COMPUTED_TOGETHER and case.options.get("kernel", "polynomial") == "polynomial":
        with pytest.raises(RuntimeError, match="differentiated again"):
            torch.autograd.grad(value, inputs.learning, create_graph=True)
        return
    gradients = torch.autograd.grad(value, inputs.learning, create_graph=True, allow_unused=True)
    assert any(gradient is not None and gradient.requires_grad for gradient in gradients)


DEAD = {
    "a row of zeros": lambda x: x[0].zero_(),
    "a row near zero": lambda x: x[0].mul_(1e-30),
    "a channel of zeros": lambda x: x[:, 0].zero_(),
}


@pytest.mark.parametrize("dead", DEAD)
@of(lambda case: not case.options.get("standardize"))  # of one number, which divides by the deviation, as published
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_what_is_dead_gets_a_gradient_of_ordinary_size(case: Case, dtype: torch.dtype, dead: str) -> None:
    """A student with a BatchNorm that begins at zero, or with padding, must not be thrown away by one step."""
    largest = []
    for change in (lambda x: x, DEAD[dead]):
        component, inputs = _component(case, dtype)
        with torch.no_grad():
            for tensor in inputs.students:
                change(tensor)
        largest.append(max(gradient.abs().max().item() for gradient in _gradients(component, inputs)))
    assert largest[1] <= 100 * max(largest[0], 1e-3)


@of()
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, *HALF], ids=str)
def test_is_a_finite_scalar_of_at_least_float32(case: Case, dtype: torch.dtype) -> None:
    value = _value(*_component(case, dtype))
    assert value.shape == ()
    assert value.isfinite()
    assert value.dtype == (torch.float32 if dtype in HALF else dtype)


@of()
@pytest.mark.parametrize("dtype", [torch.float32, *HALF], ids=str)
def test_low_precision_agrees_with_float64(case: Case, dtype: torch.dtype) -> None:
    tolerance = {**TOLERANCE, **case.tolerance}[dtype]
    expected = _value(*_component(case)).item()
    assert _value(*_component(case, dtype)).item() == pytest.approx(expected, rel=tolerance)


@of()
def test_autocast_agrees_with_float64(case: Case) -> None:
    tolerance = {**TOLERANCE, **case.tolerance}[torch.bfloat16]
    expected = _value(*_component(case)).item()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = _value(*_component(case, torch.float32))
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(expected, rel=tolerance)


@of(lambda case: bool(_memory(build(case.loss, case.options, case.inputs()))))
@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_what_a_loss_remembers_stays_wide_in_a_narrow_module(case: Case, dtype: torch.dtype) -> None:
    component, _ = _component(case, torch.float32)
    before = {name: own.clone() for name, own in _memory(component).items()}
    component.to(dtype)
    assert _memory(component).keys() == before.keys()
    assert all(torch.equal(own, before[name]) for name, own in _memory(component).items())
    assert all(own.dtype == torch.float32 for own in _memory(component).values())


@of(lambda case: case.by_function is not None)
def test_component_equals_function(case: Case) -> None:
    component, inputs = _component(case)
    assert case.by_function is not None
    torch.manual_seed(3)
    expected = case.by_function(copy.deepcopy(component), inputs)
    _same(_value(component, inputs), expected)


@of()
def test_evaluate_equals_forward(case: Case) -> None:
    component, inputs = _component(case)
    reads_logits = not component.student_layers
    logits = {"student_logits": inputs.students[0]} if reads_logits else {}
    others = iter(inputs.students[1:])
    step = StepTensors(
        teacher_logits=inputs.teachers[0] if reads_logits and inputs.teachers else None,
        student_features=dict(zip(component.student_layers, inputs.students, strict=False)),
        teacher_features=dict(zip(component.teacher_layers, inputs.teachers, strict=False)),
        call=lambda _: next(others),
        **{**logits, **inputs.extra},
    )
    step = inputs.step if inputs.layers else step
    expected = _value(copy.deepcopy(component), inputs)
    torch.manual_seed(3)
    _same(component.evaluate(step), expected)


@of(lambda case: case.nonnegative)
@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0])
def test_is_never_negative(case: Case, scale: float) -> None:
    component, inputs = _component(case)
    assert _value(component, inputs.map(lambda t: t * scale)).item() >= -1e-14


@of(lambda case: case.zero_at_match)
def test_is_zero_with_no_gradient_at_match(case: Case) -> None:
    inputs = case.inputs()
    matched = replace(inputs, teacher=inputs.student).fresh()
    component = build(case.loss, {**case.options, **case.match_options}, matched)
    assert _value(component, matched).item() == pytest.approx(0.0, abs=1e-14)
    for gradient in _gradients(component, matched):
        assert gradient.abs().max() <= 1e-8


@of(lambda case: case.permutation_invariant)
def test_the_order_of_the_samples_does_not_matter(case: Case) -> None:
    component, inputs = _component(case)
    order = torch.randperm(len(inputs.students[0]))
    expected = _value(copy.deepcopy(component), inputs)
    _same(_value(component, inputs.rows(lambda t: t[order])), expected)


@of(lambda case: not case.loss.relational and not case.batch_statistics and case.permutation_invariant)
def test_the_mean_over_two_halves_is_the_whole(case: Case) -> None:
    component, inputs = _component(case)
    half = len(inputs.students[0]) // 2
    whole = _value(copy.deepcopy(component), inputs)
    halves = [_value(copy.deepcopy(component), inputs.rows(r)) for r in (lambda t: t[:half], lambda t: t[half:])]
    _same(sum(halves, torch.zeros(())) / 2, whole)


# --- gradient --------------------------------------------------------------------------------------------------------


@of()
def test_the_gradient_reaches_student_and_own_parameters_alone(case: Case) -> None:
    component, inputs = _component(case)
    for teacher in inputs.teachers:
        teacher.requires_grad_()
    for gradient in _gradients(component, inputs):
        assert gradient.isfinite().all()
        assert gradient.any()
    assert all(teacher.grad is None for teacher in inputs.teachers)


@of(lambda case: case.slope)
def test_the_gradient_is_the_slope(case: Case) -> None:
    component, inputs = _component(case)
    names, parameters = zip(*component.named_parameters(), strict=True) if list(component.parameters()) else ((), ())
    count = len(inputs.learning)

    def value(*tensors: Tensor) -> Tensor:
        learning = iter(tensors[:count])
        students = [s if i in inputs.imitated else next(learning) for i, s in enumerate(inputs.students)]
        student = students if isinstance(inputs.student, list) else students[0]
        args = replace(inputs, student=student).args
        torch.manual_seed(3)
        own = dict(zip(names, tensors[count:], strict=True))
        result = torch.func.functional_call(copy.deepcopy(component), own, tuple(args), dict(inputs.extra))
        assert isinstance(result, Tensor)
        return result

    assert torch.autograd.gradcheck(value, (*inputs.learning, *parameters), fast_mode=True)  # along random directions


# --- extremes --------------------------------------------------------------------------------------------------------


@of(lambda case: case.extreme)
@pytest.mark.parametrize("scale", [0.0, 1e-8, 1e4])
@pytest.mark.parametrize("autocast", [False, True])
def test_extreme_inputs_stay_finite(case: Case, scale: float, autocast: bool) -> None:
    component, inputs = _component(case, torch.float32)
    inputs = inputs.map(lambda t: t * scale).fresh()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        gradients = _gradients(component, inputs)
    assert _value(component, inputs).isfinite()
    assert all(gradient.isfinite().all() for gradient in gradients)


@of(lambda case: case.extreme and not list(build(case.loss, case.options, case.inputs()).parameters()))
@pytest.mark.parametrize("scale", [0.0, 1e4])
@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_extreme_half_inputs_stay_finite(case: Case, scale: float, dtype: torch.dtype) -> None:
    component, inputs = _component(case, dtype)
    inputs = inputs.map(lambda t: t.sign() * scale).fresh()
    assert all(gradient.isfinite().all() for gradient in _gradients(component, inputs))
    assert _value(component, inputs).isfinite()


@of(lambda case: case.single_sample)
def test_a_batch_of_one_works(case: Case) -> None:
    component, inputs = _component(case)
    one = inputs.rows(lambda t: t[:1]).fresh()
    assert _value(component, one).isfinite()
    assert all(gradient.isfinite().all() for gradient in _gradients(component, one))


@of()
def test_the_inputs_are_left_alone(case: Case) -> None:
    component, inputs = _component(case)
    tensors = [*inputs.students, *inputs.teachers, *inputs.extra.values()]
    before = [t.detach().clone() for t in tensors]
    _gradients(component, inputs)
    assert all(torch.equal(a, b) for a, b in zip(before, tensors, strict=True))


@pytest.mark.parametrize(
    ("case", "args"), [pytest.param(c, a, id=f"{c}-{i}") for c in CASES for i, a in enumerate(c.bad_calls)]
)
def test_shapes_that_do_not_match_are_named(case: Case, args: tuple[Tensor, Tensor]) -> None:
    assert case.function is not None
    others = list(inspect.signature(case.function).parameters)[len(args) :]
    extra = {name: value for name, value in case.inputs().extra.items() if name in others}
    with pytest.raises(ValueError, match=case.function.__name__) as caught:
        case.function(*args, **extra)
    assert all(str(tuple(a.shape)) in str(caught.value) for a in args)


@pytest.mark.parametrize(
    ("case", "student", "teacher"),
    [pytest.param(c, s, t, id=f"{c}-{s}-{t}") for c in CASES for s, t in c.bad_builds],
)
def test_build_names_both_shapes(case: Case, student: tuple[int, ...], teacher: tuple[int, ...]) -> None:
    component = make(case.loss, case.options, case.inputs())
    sides = [
        dict.fromkeys(side, s) for side, s in zip(shapes(component, case.inputs()), (student, teacher), strict=True)
    ]
    with pytest.raises(ValueError, match=case.loss.__name__) as caught:
        component.build(*sides)
    assert str(student) in str(caught.value)
    assert str(teacher) in str(caught.value)


# --- life of a component ---------------------------------------------------------------------------------------------


@of()
def test_deepcopy_and_pickle_keep_the_value(case: Case) -> None:
    component, inputs = _component(case)
    copies = [copy.deepcopy(component), pickle.loads(pickle.dumps(component))]
    expected = _value(component, inputs)
    for other in copies:
        assert torch.equal(_value(other, inputs), expected)


@of(lambda case: case.plain_options)
def test_description_and_state_restore_the_component(case: Case) -> None:
    component, inputs = _component(case)
    for parameter in component.parameters():
        torch.nn.init.normal_(parameter)
    saved = io.BytesIO()
    torch.save(component.state_dict(), saved)
    description = json.loads(json.dumps(describe(component)))
    other = restore(description, DistillationLoss)
    assert isinstance(other, case.loss)
    introduce(other, inputs).build(*shapes(other, inputs))
    other.to(torch.float64).load_state_dict(torch.load(io.BytesIO(saved.getvalue()), weights_only=True))
    assert describe(other) == describe(component)
    other.train(component.training)
    expected = _value(component, inputs)
    assert torch.equal(_value(other, inputs), expected)


@of()
def test_repr_shows_the_options(case: Case) -> None:
    component = make(case.loss, case.options)
    assert repr(component).startswith(case.loss.__name__)
    for name in inspect.signature(case.loss).parameters:
        value = getattr(component, name)
        is_part = isinstance(value, torch.nn.Module) or (isinstance(value, Iterable) and any(map(_is_module, value)))
        assert is_part or f"{name}={value!r}" in repr(component)


def _is_module(value: object) -> bool:
    return isinstance(value, torch.nn.Module)


def _first_of_each_loss(cases: Iterable[Case]) -> list[Any]:
    """Leave the other cases of a loss to the slow tests, since each is compiled for about a second."""
    seen: set[object] = set()
    params = []
    for case in cases:
        params.append(pytest.param(case, marks=[pytest.mark.slow] if case.loss in seen else [], id=str(case)))
        seen.add(case.loss)
    return params


@pytest.mark.parametrize("case", _first_of_each_loss(CASES))
def test_compiles_without_a_graph_break(case: Case) -> None:
    component, inputs = _component(case)
    expected = _gradients(copy.deepcopy(component), inputs)
    torch.compiler.reset()
    compiled = torch.compile(component, fullgraph=True, backend="aot_eager")
    fresh = inputs.fresh()
    _value(compiled, fresh).backward()
    found = [*[s.grad for s in fresh.learning], *[p.grad for p in component.parameters() if p.requires_grad]]
    for ours, theirs in zip(found, expected, strict=True):
        assert ours is not None
        _same(ours, theirs, 1e-10)


@of()
def test_a_negative_weight_is_refused(case: Case) -> None:
    with pytest.raises(ValueError, match="weight >= 0"):
        make(case.loss, {**case.options, "weight": -1.0})


# --- text ------------------------------------------------------------------------------------------------------------


def _sections(thing: object) -> dict[str, str]:
    parts = re.split(r"^(\w+):\n", inspect.getdoc(thing) or "", flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def _described(thing: object) -> dict[str, str]:
    parts = re.split(r"^ {4}(\w+): ", _sections(thing).get("Args", ""), flags=re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in zip(parts[1::2], parts[2::2], strict=True)}


@pytest.mark.parametrize("function", exported_functions(), ids=lambda f: f.__name__)
def test_the_function_is_documented(function: Callable[..., Tensor]) -> None:
    assert {"Shape", "Args", "Raises", "Example", "Reference"} <= set(_sections(function))
    assert list(_described(function)) == list(inspect.signature(function).parameters)


@pytest.mark.parametrize("loss", exported_losses(), ids=lambda loss: loss.__name__)
def test_the_component_is_documented(loss: type[DistillationLoss]) -> None:
    assert sorted(_described(loss)) == sorted(inspect.signature(loss).parameters)


@of(lambda case: case.function is not None)
def test_function_and_component_describe_an_option_alike(case: Case) -> None:
    """Same name, same sentence, same default; layer names share their words with tensors only."""
    assert case.function is not None
    formula, component = inspect.signature(case.function).parameters, inspect.signature(case.loss).parameters
    for name in (formula.keys() & component.keys()) - {"student", "teacher"}:
        # a component can look at the networks and choose; a function gets tensors alone, so it has another default
        if component[name].default != "auto":
            assert formula[name].default == component[name].default
            assert _described(case.function)[name] == _described(case.loss)[name]
