"""Feature distillation: the authors' numbers, pooling, pairs of layers and their projectors."""

import copy

import pytest
import torch
from torch import Tensor, nn

from lightning_kd.configurable import describe, restore
from lightning_kd.losses import DistillationLoss, HintLoss
from lightning_kd.losses.features.hint import hint_loss
from lightning_kd.projectors import (
    ConvProjector,
    ConvRegressor,
    IdentityProjector,
    LinearProjector,
    Projector,
    TokenProjector,
)
from tests.losses.case import random
from tests.losses.golden import Golden, check_golden, golden

PROJECTORS: dict[str, Projector] = {"c0": ConvProjector(), "c1": ConvRegressor()}


@pytest.mark.parametrize("record", golden("hint"), ids=str)
def test_equals_repdistillers_code(record: Golden) -> None:
    arrays = record.arrays
    loss = HintLoss("a", "b", projector=PROJECTORS[record.case])
    loss.build({"a": tuple(arrays["s0"].shape)}, {"b": tuple(arrays["t0"].shape)})
    (projector,) = loss.projectors
    stored = {k.removeprefix("param.regressor."): v for k, v in arrays.items() if k.startswith("param.")}
    if record.case == "c0":  # a bare convolution there, `conv` of a projector here
        stored = {f"conv.{name}": value for name, value in stored.items()}
    loss.double()
    projector.load_state_dict(stored)
    trained = projector.conv if record.case == "c0" else projector
    assert isinstance(trained, nn.Module)

    after = copy.deepcopy(loss)
    check_golden(record, lambda s, t, _: loss(s[0], t[0]), trained)
    after(arrays["s0"], arrays["t0"])
    state = after.projectors[0].state_dict()
    updated = {k.removeprefix("buffer_after.regressor."): v for k, v in arrays.items() if k.startswith("buffer_after.")}
    assert bool(updated) == (record.case == "c1")
    for name, value in updated.items():
        torch.testing.assert_close(state[name], value, rtol=1e-10, atol=1e-12)


def _naive_pool(features: Tensor, height: int, width: int) -> Tensor:
    """Average over the cells floor(i H / h) .. ceil((i + 1) H / h), one at a time."""
    rows, columns = features.shape[2:]
    pooled = torch.empty(*features.shape[:2], height, width, dtype=features.dtype)
    for i in range(height):
        for j in range(width):
            top, bottom = i * rows // height, -(-(i + 1) * rows // height)
            left, right = j * columns // width, -(-(j + 1) * columns // width)
            pooled[:, :, i, j] = features[:, :, top:bottom, left:right].mean((2, 3))
    return pooled


@pytest.mark.parametrize("student_size", [(4, 4), (2, 6), (5, 3), (1, 1)])
@pytest.mark.parametrize("teacher_size", [(4, 4), (3, 2)])
def test_the_larger_map_is_pooled_along_each_axis(student_size: tuple[int, int], teacher_size: tuple[int, int]) -> None:
    student, teacher = random(2, 3, *student_size, seed=1), random(2, 3, *teacher_size, seed=2)
    height, width = min(student_size[0], teacher_size[0]), min(student_size[1], teacher_size[1])
    expected = (_naive_pool(student, height, width) - _naive_pool(teacher, height, width)).square().mean()
    assert hint_loss(student, teacher).item() == pytest.approx(expected.item(), rel=1e-12)


def test_the_distance_grows_with_the_square_and_ignores_a_common_shift() -> None:
    student, teacher, shift = (random(4, 5, seed=seed) for seed in (1, 2, 3))
    value = hint_loss(student, teacher).item()
    assert hint_loss(3 * student, 3 * teacher).item() == pytest.approx(9 * value, rel=1e-12)
    assert hint_loss(student + shift, teacher + shift).item() == pytest.approx(value, rel=1e-12)
    assert hint_loss(teacher, student).item() == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_the_square_of_a_large_half_does_not_overflow(dtype: torch.dtype) -> None:
    student = torch.full((1, 2, 1, 2), 4096.0, dtype=dtype, requires_grad=True)
    value = hint_loss(student, torch.zeros(1, 2, 1, 1, dtype=dtype))
    value.backward()
    assert value.dtype == torch.float32
    assert value.item() == 4096.0**2  # 16 times the largest float16 squared away
    assert student.grad is not None
    assert student.grad.isfinite().all()


def test_an_empty_batch_still_backpropagates() -> None:
    student = torch.zeros(0, 5, requires_grad=True)
    value = hint_loss(student, torch.zeros(0, 5))
    value.backward()
    assert value.item() == 0.0


def test_another_width_is_refused_with_a_remedy() -> None:
    with pytest.raises(ValueError, match="projector"):
        hint_loss(torch.zeros(2, 3), torch.zeros(2, 5))


@pytest.mark.parametrize(
    ("student", "teacher", "kind"),
    [
        ((2, 3), (2, 5), LinearProjector),
        ((2, 7, 3), (2, 7, 5), TokenProjector),
        ((2, 3, 4, 4), (2, 5, 2, 2), ConvProjector),
    ],
)
def test_each_pair_gets_the_projector_of_its_shape(
    student: tuple[int, ...], teacher: tuple[int, ...], kind: type[Projector]
) -> None:
    loss = HintLoss("a", "b")
    loss.build({"a": student}, {"b": teacher})
    (projector,) = loss.projectors
    assert type(projector) is kind
    assert loss(torch.zeros(student), torch.zeros(teacher)).isfinite()


def test_pairs_follow_the_order_of_the_names() -> None:
    loss = HintLoss(["x", "y"], ["u", "v"])
    loss.build({"y": (2, 4), "x": (2, 3)}, {"u": (2, 5), "v": (2, 6)})
    assert [tuple(p.linear.weight.shape) for p in loss.projectors if isinstance(p, LinearProjector)] == [(5, 3), (6, 4)]


def test_the_sum_over_pairs_is_that_of_the_single_losses() -> None:
    students, teachers = [random(4, 3, seed=1), random(4, 2, seed=2)], [random(4, 5, seed=3), random(4, 6, seed=4)]
    both = HintLoss(["x", "y"], ["u", "v"])
    both.build({"x": (4, 3), "y": (4, 2)}, {"u": (4, 5), "v": (4, 6)})
    both.double()
    single = [hint_loss(p(s), t) for p, s, t in zip(both.projectors, students, teachers, strict=True)]
    assert both(students, teachers).item() == pytest.approx(sum(v.item() for v in single), rel=1e-12)


def test_the_projector_given_is_a_template_without_parameters() -> None:
    template = LinearProjector(bias=False)
    loss = HintLoss(["x", "y"], ["u", "v"], projector=template)
    loss.build({"x": (2, 3), "y": (2, 3)}, {"u": (2, 5), "v": (2, 5)})
    assert not template.built
    assert not list(template.parameters())
    assert sorted(loss.state_dict()) == ["projectors.0.linear.weight", "projectors.1.linear.weight"]
    first, second = (p.linear.weight for p in loss.projectors if isinstance(p, LinearProjector))
    assert first is not second


def test_restores_from_plain_data() -> None:
    loss = HintLoss("a", "b", projector=ConvRegressor())
    description = describe(loss)
    again = restore(description, DistillationLoss)
    assert isinstance(again, HintLoss)
    assert describe(again) == description
    assert isinstance(again.projector, ConvRegressor)
    assert (again.student, again.teacher, again.weight) == ("a", "b", 1.0)
    assert describe(HintLoss(["a"], ["b"]))["init_args"] == {
        "student": ["a"],
        "teacher": ["b"],
        "layout": None,
        "weight": 1.0,
        "projector": None,
    }


def test_calling_before_build_says_so() -> None:
    with pytest.raises(RuntimeError, match=r"HintLoss: not built yet; call build\("):
        HintLoss("a", "b")(torch.zeros(2, 3), torch.zeros(2, 3))


def test_building_twice_says_so() -> None:
    loss = HintLoss("a", "b")
    loss.build({"a": (2, 3)}, {"b": (2, 3)})
    with pytest.raises(RuntimeError, match="built already"):
        loss.build({"a": (2, 3)}, {"b": (2, 3)})


def test_a_failed_build_leaves_nothing_behind() -> None:
    loss = HintLoss(["a", "c"], ["b", "d"])
    with pytest.raises(ValueError, match="student layer 'c' and teacher layer 'd'"):
        loss.build({"a": (2, 3), "c": (2, 3)}, {"b": (2, 3), "d": (2, 3, 4, 4)})
    assert not loss.projectors


def test_a_built_projector_is_refused() -> None:
    projector = IdentityProjector()
    projector.build((2, 3), (2, 3))
    with pytest.raises(ValueError, match="not built yet"):
        HintLoss("a", "b", projector=projector)


def test_layers_must_pair_up() -> None:
    with pytest.raises(ValueError, match="as many student layers as teacher layers"):
        HintLoss(["a", "b"], "c")


def test_as_many_tensors_as_layers_are_expected() -> None:
    loss = HintLoss(["x", "y"], ["u", "v"], projector=IdentityProjector())
    loss.build({"x": (2, 3), "y": (2, 3)}, {"u": (2, 3), "v": (2, 3)})
    with pytest.raises(ValueError, match="zip"):
        loss([torch.zeros(2, 3)], [torch.zeros(2, 3)])
