"""The thirteen families, and the component that each starts with."""

import inspect
import re

import pytest
import torch

from lightning_kd import DistillationModule
from lightning_kd.data import DigitsConvNet, DigitsDataModule
from lightning_kd.losses import HintLoss, KDLoss
from lightning_kd.projectors import LinearProjector
from lightning_kd.strategy_type import _FIRST, DistillationStrategyType
from tests import support

NAMES = [
    "RESPONSE_BASED",
    "FEATURE_BASED",
    "ATTENTION_BASED",
    "RELATION_BASED",
    "CONTRASTIVE_BASED",
    "SIMILARITY_PRESERVING",
    "FLOW_BASED",
    "PROBABILISTIC_TRANSFER",
    "VARIATIONAL_INFORMATION",
    "FACTOR_TRANSFER",
    "NEURON_SELECTIVITY",
    "SELF_DISTILLATION",
    "HYBRID",
]


def test_names_and_numbers_are_fixed() -> None:
    assert [(s.name, s.value) for s in DistillationStrategyType] == [(name, i) for i, name in enumerate(NAMES)]


def test_every_family_is_described() -> None:
    described = re.findall(r"^- ``(\w+)``: \w", inspect.getdoc(DistillationStrategyType) or "", flags=re.MULTILINE)
    assert described == NAMES


def test_response_creates_kd() -> None:
    loss = DistillationStrategyType.RESPONSE_BASED.create(temperature=2.0, weight=0.9)
    assert isinstance(loss, KDLoss)
    assert (loss.temperature, loss.weight) == (2.0, 0.9)
    assert DistillationStrategyType(0).create().options() == KDLoss().options()


def test_feature_creates_hint() -> None:
    loss = DistillationStrategyType.FEATURE_BASED.create(student="a", teacher="b", projector=LinearProjector())
    assert isinstance(loss, HintLoss)
    assert (loss.student_layers, loss.teacher_layers) == (("a",), ("b",))


def test_an_unknown_option_is_answered_with_the_known_ones() -> None:
    with pytest.raises(TypeError, match="KDLoss has no option 'alpha'; its options: temperature, standardize, weight"):
        DistillationStrategyType.RESPONSE_BASED.create(alpha=0.5)


@pytest.mark.parametrize("strategy", [s for s in DistillationStrategyType if s not in _FIRST], ids=lambda s: s.name)
def test_what_is_not_there_yet_says_what_is(strategy: DistillationStrategyType) -> None:
    available = ", ".join(s.name for s in DistillationStrategyType if s in _FIRST)
    assert available.startswith("RESPONSE_BASED, FEATURE_BASED")
    with pytest.raises(NotImplementedError, match=f"{strategy.name} is not yet available; available now: {available}."):
        strategy.create()


@pytest.mark.parametrize("strategy", sorted(_FIRST), ids=lambda s: s.name)
def test_every_strategy_that_is_there_trains_with_defaults_on_digits(strategy: DistillationStrategyType) -> None:
    losses = [strategy.create()]
    student, teacher = DigitsConvNet(width=4), DigitsConvNet(width=8, depth=2)
    before = student.stage1.conv.weight.detach().clone()
    module = DistillationModule(student, teacher, losses)
    support.trainer(max_steps=2, limit_val_batches=0).fit(module, datamodule=DigitsDataModule())
    assert not torch.equal(student.stage1.conv.weight, before)
