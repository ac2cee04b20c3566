"""Losses that compare pairs of layers: what each pair owns is made once, for all pairs or for none."""

import pytest
import torch
from torch import Tensor, nn

from lightning_kd.losses import FTLoss, VIDLoss
from lightning_kd.losses.base import Shape
from lightning_kd.losses.pairs import LayerPairLoss
from tests.losses.case import Case, build, make, shapes
from tests.losses.cases import CASES

PAIRS = [case for case in CASES if issubclass(case.loss, LayerPairLoss)]
OWNING = [case for case in PAIRS if make(case.loss, case.options).per_pair]


class Scaled(LayerPairLoss):
    """Each pair owns a factor, the number of the student's channels."""

    per_pair = ("factors",)

    def __init__(self, *layers: list[str]) -> None:
        super().__init__(*layers)
        self.factors = nn.ParameterList()

    def build_pair(self, student: Shape, teacher: Shape) -> tuple[nn.Parameter]:
        if student != teacher:
            raise ValueError(f"expected equal shapes, got student {student} and teacher {teacher}.")
        return (nn.Parameter(torch.tensor(float(student[1]))),)

    def compare(self, student: Tensor, teacher: Tensor, factor: Tensor) -> Tensor:
        return factor * (student - teacher).sum()


@pytest.mark.parametrize("case", OWNING, ids=str)
def test_a_loss_that_is_not_built_says_so(case: Case) -> None:
    inputs = case.inputs()
    with pytest.raises(RuntimeError, match=rf"{case.loss.__name__}: not built yet; call build\("):
        make(case.loss, case.options)(*inputs.args)


@pytest.mark.parametrize("case", OWNING, ids=str)
def test_a_loss_is_built_once(case: Case) -> None:
    inputs = case.inputs()
    component = build(case.loss, case.options, inputs)
    before = list(component.state_dict())
    with pytest.raises(RuntimeError, match=rf"{case.loss.__name__}: built already"):
        component.build(*shapes(component, inputs))
    assert list(component.state_dict()) == before


def test_each_pair_is_compared_with_what_it_owns() -> None:
    loss = Scaled(["a", "b"], ["c", "d"])
    loss.build({"a": (4, 2), "b": (4, 5)}, {"c": (4, 2), "d": (4, 5)})
    # 2 * (8 - 0) + 5 * (20 - 40)
    value = loss([torch.ones(4, 2), torch.ones(4, 5)], [torch.zeros(4, 2), 2 * torch.ones(4, 5)])
    assert value.item() == -84.0


def test_one_pair_that_does_not_match_leaves_the_loss_empty_and_names_the_layers() -> None:
    loss = Scaled(["a", "b"], ["c", "d"])
    message = r"Scaled, student layer 'b' and teacher layer 'd': expected equal shapes, got student \(4, 5\)"
    with pytest.raises(ValueError, match=message):
        loss.build({"a": (4, 2), "b": (4, 5)}, {"c": (4, 2), "d": (4, 6)})
    assert not len(loss.factors)


def test_other_numbers_of_layers_than_built_are_refused() -> None:
    loss = Scaled(["a"], ["c"])
    loss.build({"a": (4, 2)}, {"c": (4, 2)})
    with pytest.raises(ValueError, match="zip"):
        loss([torch.ones(4, 2)] * 2, [torch.ones(4, 2)] * 2)


KEYS = {
    FTLoss: ("paraphrasers.0.encoder.0.weight", "translators.1.encoder.7.bias"),
    VIDLoss: ("regressors.0.0.weight", "log_scales.1"),
}


@pytest.mark.parametrize("loss", KEYS)
def test_the_first_and_last_key_are_those_of_earlier_checkpoints(loss: type[LayerPairLoss]) -> None:
    component = loss(["a", "b"], ["c", "d"])
    component.build(dict.fromkeys("ab", (2, 3, 4, 4)), dict.fromkeys("cd", (2, 3, 4, 4)))
    names = [name for name, _ in component.named_parameters()]
    assert (names[0], names[-1]) == KEYS[loss]
