"""A temperature for each sample: the rules one sample at a time, and KD with it, from YAML to the checkpoint."""

import json
import math

import pytest
import torch
import torch.nn.functional as F
from jsonargparse import ArgumentParser
from torch import Tensor

from lightning_kd.configurable import describe, restore
from lightning_kd.functional import kd_loss
from lightning_kd.losses import AdaptiveTemperature, DistillationLoss, KDLoss
from lightning_kd.losses.base import StepTensors
from tests import support
from tests.losses.case import random

RULES = ("confidence", "entropy", "correctness")


def rule(by: str, logits: Tensor, target: int, low: float, high: float) -> float:
    """The temperature of one sample, from the definition."""
    p = [float(x) for x in logits.softmax(0)]
    share = {
        "confidence": (max(p) - 1 / len(p)) / (1 - 1 / len(p)),
        "entropy": 1 + sum(x * math.log(x) for x in p) / math.log(len(p)),
        "correctness": 0.5 if target == -100 else float(p.index(max(p)) != target),
    }[by]
    return low + (high - low) * share


@pytest.mark.parametrize("by", RULES)
@pytest.mark.parametrize("shape", [(5, 7), (3, 2), (2, 3, 3, 1)], ids=str)
def test_kd_equals_a_loop_over_samples(by: str, shape: tuple[int, ...]) -> None:
    student, teacher = (2 * random(*shape, seed=seed) for seed in (1, 2))
    target = torch.randint(shape[1], (shape[0], *shape[2:]))
    target[0] = -100
    flat = [z.movedim(1, -1).reshape(-1, shape[1]) for z in (student, teacher)]
    values = []
    for s, t, y in zip(*flat, target.flatten().tolist(), strict=True):
        own = rule(by, t, y, 1.5, 7.0)
        p, q = (s / own).softmax(0), (t / own).softmax(0)
        values.append(own**2 * (q * (q / p).log()).sum())
    loss = KDLoss(temperature=AdaptiveTemperature(by, low=1.5, high=7.0))  # type: ignore[arg-type]
    assert loss.needs_target == (by == "correctness")
    torch.testing.assert_close(loss.evaluate(StepTensors(student, teacher, target=target)), torch.stack(values).mean())


@pytest.mark.parametrize("standardize", [False, True])
def test_the_same_temperature_for_all_is_a_number(standardize: bool) -> None:
    student, teacher = random(4, 5, 2, 3, seed=1), random(4, 5, 2, 3, seed=2)
    expected = kd_loss(student, teacher, temperature=3.0, standardize=standardize)
    for shape in ((4,), (4, 2, 3)):
        value = kd_loss(student, teacher, temperature=torch.full(shape, 3.0), standardize=standardize)
        torch.testing.assert_close(value, expected, check_dtype=False)


def test_a_dense_prediction_may_have_one_temperature_a_sample() -> None:
    student, teacher, temperature = random(2, 5, 1, 3, seed=1), random(2, 5, 1, 3, seed=2), torch.tensor([1.0, 4.0])
    halves = [kd_loss(student[i : i + 1], teacher[i : i + 1], temperature=t) for i, t in enumerate((1.0, 4.0))]
    torch.testing.assert_close(kd_loss(student, teacher, temperature=temperature), (halves[0] + halves[1]) / 2)


@pytest.mark.parametrize("shape", [(), (3,), (4, 1), (4, 2, 2)])
def test_a_temperature_that_suits_neither_samples_nor_positions_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"kd_loss: expected a temperature for each sample .*\(4, 5, 2, 3\)"):
        kd_loss(torch.zeros(4, 5, 2, 3), torch.zeros(4, 5, 2, 3), temperature=torch.ones(shape))


@pytest.mark.parametrize("by", ["confidence", "entropy"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_the_temperature_stays_between_its_ends(by: str, dtype: torch.dtype) -> None:
    logits = torch.tensor([[1e4, -1e4, 0.0], [0.0, 0.0, 0.0], [1.0, 0.0, 0.0]], dtype=dtype, requires_grad=True)
    certain, undecided, between = AdaptiveTemperature(by, low=2.0, high=6.0)(logits).tolist()  # type: ignore[arg-type]
    assert certain == pytest.approx(6.0)
    assert undecided == pytest.approx(2.0)
    assert 2.0 < between < 6.0


def test_no_gradient_reaches_the_teacher() -> None:
    teacher = random(3, 4, seed=1).requires_grad_()
    assert not AdaptiveTemperature()(teacher).requires_grad


@pytest.mark.parametrize("by", RULES)
def test_a_single_class_is_finite(by: str) -> None:
    temperature = AdaptiveTemperature(by)(torch.tensor([[3.0]]), torch.tensor([0]))  # type: ignore[arg-type]
    assert 2.0 <= temperature.item() <= 6.0


def test_correctness_asks_for_the_target() -> None:
    loss = KDLoss(temperature=AdaptiveTemperature("correctness"))
    with pytest.raises(ValueError, match="by='correctness' needs the target"):
        loss(torch.zeros(2, 3), torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"AdaptiveTemperature: expected class ids of shape \(2,\)"):
        loss(torch.zeros(2, 3), torch.zeros(2, 3), target=torch.zeros(3, dtype=torch.long))
    assert not KDLoss.needs_target
    assert not KDLoss().needs_target


@pytest.mark.parametrize("by", RULES)
@pytest.mark.parametrize("door", ["module", "callback"])
def test_it_distils_through_both_doors(door: str, by: str) -> None:
    loss = KDLoss(temperature=AdaptiveTemperature(by))  # type: ignore[arg-type]
    made, callbacks = support.through(door, losses=[loss])
    assert support.fit(made, callbacks=callbacks, max_epochs=1).global_step == 3


def test_a_checkpoint_restores_it() -> None:
    loss = KDLoss(temperature=AdaptiveTemperature("correctness", low=1.0, high=3.0))
    other = restore(json.loads(json.dumps(describe(loss))), DistillationLoss)
    assert repr(other) == repr(loss)
    assert "temperature=AdaptiveTemperature(by='correctness', low=1.0, high=3.0)" in repr(loss)
    assert isinstance(other, KDLoss)
    assert other.needs_target


def test_yaml_makes_it() -> None:
    parser = ArgumentParser()
    parser.add_argument("--loss", type=DistillationLoss)
    by_path = {"class_path": "lightning_kd.losses.AdaptiveTemperature", "init_args": {"by": "entropy", "high": 9}}
    for written in (by_path, {**by_path, "class_path": "AdaptiveTemperature"}):
        init_args = {"temperature": written, "weight": 0.5}
        config = parser.parse_object({"loss": {"class_path": "lightning_kd.losses.KDLoss", "init_args": init_args}})
        loss = parser.instantiate_classes(config).loss
        assert loss.temperature.options() == {"by": "entropy", "low": 2.0, "high": 9.0}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"by": "length"}, "expected by 'confidence', 'entropy' or 'correctness', got 'length'"),
        ({"low": 0.0}, "expected 0 < low <= high, got low 0.0 and high 6.0"),
        ({"low": 7.0}, "expected 0 < low <= high, got low 7.0 and high 6.0"),
        ({"high": math.inf}, "expected 0 < low <= high"),
    ],
)
def test_a_setting_that_cannot_be_is_refused(options: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=f"AdaptiveTemperature: {words}"):
        AdaptiveTemperature(**options)  # type: ignore[arg-type]


def test_a_gradient_may_reach_a_learned_temperature() -> None:
    temperature = torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)
    student, teacher = random(2, 3, seed=1), random(2, 3, seed=2)
    assert torch.autograd.gradcheck(lambda t: kd_loss(student, teacher, temperature=t), (temperature,))


def test_a_teacher_that_is_right_is_taken_at_its_word() -> None:
    teacher, target = torch.tensor([[3.0, 0.0, 1.0]]), torch.tensor([0])
    student = torch.zeros(1, 3, requires_grad=True)
    KDLoss(temperature=AdaptiveTemperature("correctness", low=1.0))(student, teacher, target=target).backward()
    torch.testing.assert_close(student.grad, torch.full((1, 3), 1 / 3) - F.softmax(teacher, 1))
