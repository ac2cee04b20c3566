"""Projectors: which layers they make, the shapes that they give, and what they refuse."""

import copy
import json

import pytest
import torch
from torch import Tensor, nn

import lightning_kd.projectors as module
from lightning_kd.configurable import describe, restore
from lightning_kd.projectors import (
    ConvProjector,
    ConvRegressor,
    IdentityProjector,
    LinearProjector,
    Projector,
    TokenProjector,
    default_projector,
    width,
)

Shape = tuple[int, ...]
PUBLIC = [value for name, value in vars(module).items() if not name.startswith("_")]
KINDS = [v for v in PUBLIC if isinstance(v, type) and issubclass(v, Projector) and v is not Projector]
SHAPES: dict[type[Projector], tuple[Shape, Shape]] = {
    LinearProjector: ((4, 3), (4, 5)),
    TokenProjector: ((4, 7, 3), (4, 7, 5)),
    ConvProjector: ((4, 3, 6, 6), (4, 5, 6, 6)),
    ConvRegressor: ((4, 3, 6, 6), (4, 5, 6, 6)),
    IdentityProjector: ((4, 5), (4, 5)),
}


def built(projector: Projector, student: Shape, teacher: Shape) -> Projector:
    projector.build(student, teacher)
    return projector


def parameters_of(projector: Projector) -> dict[str, Shape]:
    return {name: tuple(p.shape) for name, p in projector.named_parameters()}


def test_every_projector_is_tested_here() -> None:
    assert set(KINDS) == set(SHAPES)


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.__name__)
def test_leads_to_the_teachers_shape(kind: type[Projector]) -> None:
    student, teacher = SHAPES[kind]
    assert built(kind(), student, teacher)(torch.randn(student)).shape == teacher


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.__name__)
def test_has_no_parameters_before_build_and_says_so(kind: type[Projector]) -> None:
    projector = kind()
    assert not projector.state_dict()
    with pytest.raises(RuntimeError, match=rf"{kind.__name__}: not built yet; call build\("):
        projector(torch.zeros(SHAPES[kind][0]))


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.__name__)
def test_is_built_once(kind: type[Projector]) -> None:
    projector = built(kind(), *SHAPES[kind])
    with pytest.raises(RuntimeError, match=f"{kind.__name__}: built already"):
        projector.build(*SHAPES[kind])


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.__name__)
def test_another_number_of_axes_names_both_shapes(kind: type[Projector]) -> None:
    student, teacher = SHAPES[kind]
    other = (*teacher, 2, 2) if len(teacher) == 2 else teacher[:2]
    with pytest.raises(ValueError, match=kind.__name__) as caught:
        kind().build(student, other)
    assert str(student) in str(caught.value)
    assert str(other) in str(caught.value)


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.__name__)
def test_plain_data_copy_and_state_restore_it(kind: type[Projector]) -> None:
    student, teacher = SHAPES[kind]
    projector = built(kind(), student, teacher).eval()
    again = restore(json.loads(json.dumps(describe(projector))), Projector)
    assert isinstance(again, kind)
    built(again, student, teacher).load_state_dict(projector.state_dict())
    features = torch.randn(student)
    assert torch.equal(again.eval()(features), projector(features))
    assert torch.equal(copy.deepcopy(projector)(features), projector(features))


@pytest.mark.parametrize(
    ("projector", "student", "remedy"),
    [
        (LinearProjector(), (4, 3, 6, 6), "use ConvProjector"),
        (ConvProjector(), (4, 7, 3), "use TokenProjector"),
        (ConvRegressor(), (4, 3), "use LinearProjector"),
        (TokenProjector(), (4, 3, 2, 2, 2), "name layers"),
    ],
    ids=repr,
)
def test_the_wrong_number_of_axes_names_the_right_projector(projector: Projector, student: Shape, remedy: str) -> None:
    with pytest.raises(ValueError, match=remedy):
        projector.build(student, student)


def test_the_linear_map_by_hand() -> None:
    projector = built(LinearProjector(), (1, 2), (1, 1))
    projector.load_state_dict({"linear.weight": torch.tensor([[2.0, -1.0]]), "linear.bias": torch.tensor([0.5])})
    assert projector(torch.tensor([[3.0, 4.0]])).item() == 2.5


def test_tokens_and_positions_are_mapped_alike() -> None:
    weight = torch.tensor([[2.0, -1.0]])
    tokens = built(TokenProjector(bias=False), (1, 2, 2), (1, 2, 1))
    tokens.load_state_dict({"linear.weight": weight})
    assert tokens(torch.tensor([[[3.0, 4.0], [1.0, 0.0]]])).flatten().tolist() == [2.0, 2.0]
    maps = built(ConvProjector(bias=False), (1, 2, 1, 2), (1, 1, 1, 2))
    maps.load_state_dict({"conv.weight": weight.reshape(1, 2, 1, 1)})
    assert maps(torch.tensor([[[[3.0, 1.0]], [[4.0, 0.0]]]])).flatten().tolist() == [2.0, 2.0]


def test_options_of_the_convolution() -> None:
    shapes = (2, 3, 4, 4), (2, 5, 4, 4)
    assert parameters_of(built(ConvProjector(), *shapes)) == {"conv.weight": (5, 3, 1, 1), "conv.bias": (5,)}
    normed = built(ConvProjector(bias=False, norm=True), *shapes)
    assert parameters_of(normed) == {"conv.weight": (5, 3, 1, 1), "bn.weight": (5,), "bn.bias": (5,)}
    features = torch.randn(shapes[0])
    torch.testing.assert_close(normed(features).mean((0, 2, 3)), torch.zeros(5), rtol=0, atol=1e-5)
    assert built(ConvProjector(), *shapes)(features).min() < 0
    assert built(ConvProjector(activation=True), *shapes)(features).min() == 0


@pytest.mark.parametrize(
    ("student", "teacher", "convolution"),
    [
        ((6, 6), (6, 6), nn.Conv2d(3, 5, 1)),
        ((8, 6), (4, 3), nn.Conv2d(3, 5, 3, stride=2, padding=1)),
        ((4, 3), (8, 6), nn.ConvTranspose2d(3, 5, 4, stride=2, padding=1)),
        ((7, 6), (5, 5), nn.Conv2d(3, 5, (3, 2))),
        ((8, 4), (4, 4), nn.Conv2d(3, 5, (5, 1))),
        ((1, 1), (1, 1), nn.Conv2d(3, 5, 1)),
    ],
    ids=str,
)
def test_the_regressor_resizes_along_both_axes(
    student: tuple[int, int], teacher: tuple[int, int], convolution: nn.Module
) -> None:
    shapes = (2, 3, *student), (2, 5, *teacher)
    regressor = built(ConvRegressor(), *shapes)
    assert repr(regressor.conv) == repr(convolution)
    projected: Tensor = regressor(torch.randn(shapes[0]))
    assert projected.shape == shapes[1]
    assert projected.min() >= 0
    assert sorted(parameters_of(regressor)) == ["bn.bias", "bn.weight", "conv.bias", "conv.weight"]


@pytest.mark.parametrize(
    ("student", "teacher"), [((4, 4), (6, 6)), ((4, 4), (8, 4)), ((4, 2), (8, 8)), ((8, 3), (4, 4))]
)
def test_the_regressor_refuses_a_smaller_student(student: tuple[int, int], teacher: tuple[int, int]) -> None:
    shapes = (2, 3, *student), (2, 5, *teacher)
    with pytest.raises(ValueError, match="use ConvProjector") as caught:
        ConvRegressor().build(*shapes)
    assert all(str(shape) in str(caught.value) for shape in shapes)


def test_identity_returns_the_very_tensor() -> None:
    features = torch.randn(2, 5)
    assert built(IdentityProjector(), (2, 5), (2, 5))(features) is features


@pytest.mark.parametrize(
    ("student", "teacher", "remedy"),
    [
        ((2, 3), (2, 5), "LinearProjector"),
        ((2, 7, 3), (2, 7, 5), "TokenProjector"),
        ((2, 3, 4, 4), (2, 5, 4, 4), "Conv"),
    ],
)
def test_identity_needs_equal_widths(student: Shape, teacher: Shape, remedy: str) -> None:
    with pytest.raises(ValueError, match=remedy) as caught:
        IdentityProjector().build(student, teacher)
    assert str(student) in str(caught.value)
    assert str(teacher) in str(caught.value)


def test_a_projector_that_could_not_be_built_is_not_built() -> None:
    projector = IdentityProjector()
    with pytest.raises(ValueError, match="equal widths"):
        projector.build((2, 3), (2, 5))
    assert not projector.built


@pytest.mark.parametrize(
    ("shape", "kind"), [((2, 3), LinearProjector), ((2, 7, 3), TokenProjector), ((2, 3, 4, 4), ConvProjector)]
)
def test_the_default_follows_the_number_of_axes(shape: Shape, kind: type[Projector]) -> None:
    projector = default_projector(shape, shape)
    assert type(projector) is kind
    assert not projector.built


@pytest.mark.parametrize(
    ("student", "teacher"), [((2, 3), (2, 3, 4)), ((2,), (2,)), ((2, 3, 4, 4, 4), (2, 3, 4, 4, 4))]
)
def test_the_default_refuses_other_shapes(student: Shape, teacher: Shape) -> None:
    with pytest.raises(ValueError, match="default_projector") as caught:
        default_projector(student, teacher)
    assert str(student) in str(caught.value)
    assert str(teacher) in str(caught.value)


@pytest.mark.parametrize(
    ("shape", "channels"), [((2,), 1), ((), 1), ((2, 3), 3), ((2, 7, 3), 3), ((2, 3, 4, 5), 3), ((2, 3, 4, 5, 6), 3)]
)
def test_width_is_the_channel_axis(shape: Shape, channels: int) -> None:
    assert width(shape) == channels


def test_the_options_are_shown() -> None:
    assert repr(ConvProjector(norm=True)) == "ConvProjector(bias=True, norm=True, activation=False)"
