"""The simple recipe: the authors' numbers, what the projector takes up, and a match."""

import math

import pytest

from lightning_kd.functional import srd_loss
from lightning_kd.losses import SRDLoss
from lightning_kd.projectors import LinearProjector
from tests.losses.case import check_float32, random, tight
from tests.losses.golden import Golden, check_golden, golden


@pytest.mark.parametrize("record", golden("srd"), ids=str)
def test_it_equals_the_authors_code(record: Golden) -> None:
    arrays = record.arrays
    loss = SRDLoss("a", "b", exponent=record.hyper["exponent"], projector=LinearProjector())
    loss.build({"a": tuple(arrays["s0"].shape)}, {"b": tuple(arrays["t0"].shape)})
    embed = loss.projectors[0].linear
    embed.double().load_state_dict({name: arrays[f"param.embed.{name}"] for name in ("weight", "bias")})
    check_golden(record, lambda s, t, _: loss(s[0], t[0]), embed)


def test_it_equals_a_loop_over_samples_and_channels() -> None:
    student, teacher = random(5, 3, seed=1), random(5, 3, seed=2)
    total = 0.0
    for c in range(3):
        sides = []
        for values in (student[:, c].tolist(), teacher[:, c].tolist()):
            mean = sum(values) / 5
            variance = sum((x - mean) ** 2 for x in values) / 5
            sides.append([(x - mean) / math.sqrt(variance + 1e-4) for x in values])
        total += sum(abs(s - t) ** 2.5 for s, t in zip(*sides, strict=True))
    assert srd_loss(student, teacher, exponent=2.5).item() == pytest.approx(math.log(total), rel=1e-12)


def test_a_high_exponent_is_the_largest_difference() -> None:
    student, teacher = random(6, 4, seed=1), random(6, 4, seed=2)
    whitened = [(x - x.mean(0)) / (x.var(0, correction=0) + 1e-4).sqrt() for x in (student, teacher)]
    largest = (whitened[0] - whitened[1]).abs().max().item()
    assert srd_loss(student, teacher, exponent=400.0).item() / 400 == pytest.approx(math.log(largest), rel=1e-3)


def test_a_match_is_the_smallest_value_and_has_no_gradient() -> None:
    teacher = random(6, 4, seed=1)
    student = teacher.clone().requires_grad_()
    value = srd_loss(student, teacher)
    value.backward()
    assert value.item() == pytest.approx(math.log(1e-5))
    assert not student.grad.any()


def test_float32_is_exact_for_a_tight_cluster_far_from_zero() -> None:
    check_float32(srd_loss, [tight(16, 8, seed=seed) for seed in (1, 2)], tolerance=1e-3)


def test_equal_widths_have_a_projector_too() -> None:
    loss = SRDLoss("a", "b")
    loss.build({"a": (4, 3, 5, 5)}, {"b": (4, 7, 3)})  # a map of 3 channels, and 7 tokens of 3
    assert [(name, tuple(p.shape)) for name, p in loss.named_parameters()] == [("projectors.0.linear.weight", (3, 3))]


@pytest.mark.parametrize("exponent", [0.5, -1.0, math.inf, math.nan])
def test_an_exponent_that_is_no_distance_is_refused(exponent: float) -> None:
    with pytest.raises(ValueError, match=f"SRDLoss: expected a finite exponent >= 1, got {exponent}"):
        SRDLoss(exponent=exponent)
    with pytest.raises(ValueError, match=f"srd_loss: expected a finite exponent >= 1, got {exponent}"):
        srd_loss(random(2, 2, seed=1), random(2, 2, seed=2), exponent=exponent)
