"""Factor transfer: the authors' numbers, the paraphraser's stage, and what the loss does not see."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from lightning_kd.functional import factor_transfer_loss
from lightning_kd.losses import FTLoss, StepTensors
from lightning_kd.losses.stage import Stage
from tests.losses.case import check_float32, random, tight
from tests.losses.golden import Golden, check_golden, golden

CODE = {"variant": "repdistiller"}


def built(record: Golden, **options: object) -> FTLoss:
    """A component with the weights of a record."""
    arrays = record.arrays
    loss = FTLoss("a", "b", **options)
    loss.build({"a": tuple(arrays["s0"].shape)}, {"b": tuple(arrays["t0"].shape)})
    loss.double()
    for name, network in (("paraphraser", loss.paraphrasers[0]), ("translator", loss.translators[0])):
        stored = {k.removeprefix(f"param.{name}."): v for k, v in arrays.items() if k.startswith(f"param.{name}.")}
        network.load_state_dict(stored)
    return loss


def without_paraphraser(record: Golden) -> Golden:
    """That code also records the gradient of the paraphraser, which nobody uses."""
    kept = {k: v for k, v in record.arrays.items() if not k.startswith("grad_param.paraphraser")}
    return replace(record, arrays=kept)


@pytest.mark.parametrize("record", golden("ft", "", "__p2_2", "__torchdistill_p1"), ids=str)
def test_it_equals_the_published_code(record: Golden) -> None:
    authors = record.suffix == "__torchdistill_p1"  # the authors' own, as another package writes it
    options = {} if authors else {**CODE, "p2": 2.0 if record.suffix else 1.0}
    loss = built(record, **options)
    after = copy.deepcopy(loss)
    own = nn.Module()
    own.paraphraser, own.translator = loss.paraphrasers[0], loss.translators[0]
    check_golden(without_paraphraser(record), lambda s, t, _: loss(s[0], t[0]), own)
    assert all(p.grad is None for p in loss.paraphrasers.parameters())
    after(record.arrays["s0"], record.arrays["t0"])
    state = after.translators[0].state_dict()
    updated = {k: v for k, v in record.arrays.items() if k.startswith("buffer_after.")}
    assert len(updated) == 6
    for name, value in updated.items():
        torch.testing.assert_close(state[name.removeprefix("buffer_after.translator.")], value, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("record", golden("ft", "__paraphraser_rec"), ids=str)
def test_the_stage_equals_the_published_code(record: Golden) -> None:
    loss = built(record)
    arrays = {k: v for k, v in record.arrays.items() if k != "grad_s0"}  # the student has no part in it

    def stage(_s: object, teachers: list[torch.Tensor], _a: object) -> torch.Tensor:
        return loss.evaluate_stage(StepTensors(teacher_features={"b": teachers[0]}))

    no_students = {k: v for k, v in arrays.items() if k != "s0"}
    check_golden(replace(record, arrays=no_students), stage, loss.paraphrasers[0])
    assert all(p.grad is None for p in loss.translators.parameters())


@pytest.mark.parametrize("record", golden("ft_factor", "", "__p1_1_p2_2", "__torchdistill_p1"), ids=str)
def test_the_function_equals_the_published_code(record: Golden) -> None:
    options = {
        "": CODE,
        "__p1_1_p2_2": {**CODE, "p1": 1.0, "p2": 2.0},
        "__torchdistill_p1": {},
    }[record.suffix]
    check_golden(record, lambda s, t, _: factor_transfer_loss(s[0], t[0], **options))


@pytest.mark.parametrize(("student", "teacher"), [((3, 5), (3, 5)), ((5, 2), (2, 4)), ((1, 1), (3, 2))])
def test_it_equals_a_loop_over_samples_and_elements(student: tuple[int, int], teacher: tuple[int, int]) -> None:
    student_map, teacher_map = random(3, 4, *student, seed=1), random(3, 4, *teacher, seed=2)
    size = [min(pair) for pair in zip(student, teacher, strict=True)]
    pooled = [nn.functional.adaptive_avg_pool2d(x, size) for x in (student_map, teacher_map)]
    total = 0.0
    for s, t in zip(*pooled, strict=True):
        lengths = [sum(v * v for v in x.flatten().tolist()) ** 0.5 for x in (s, t)]
        for a, b in zip(s.flatten().tolist(), t.flatten().tolist(), strict=True):
            total += abs(a / lengths[0] - b / lengths[1])
    assert factor_transfer_loss(student_map, teacher_map).item() == pytest.approx(total / pooled[0].numel(), rel=1e-12)


@pytest.mark.parametrize("options", [{}, CODE, {**CODE, "p1": 3.0, "p2": 1.5}], ids=str)
def test_it_does_not_see_the_scale_and_is_zero_at_a_match(options: dict[str, object]) -> None:
    student, teacher = random(3, 4, 3, 2, seed=1), random(3, 4, 3, 2, seed=2)
    scales = torch.tensor([1e-3, 3.0, 1e4]).double().reshape(3, 1, 1, 1)
    value = factor_transfer_loss(student, teacher, **options)
    torch.testing.assert_close(factor_transfer_loss(scales * student, teacher, **options), value)
    torch.testing.assert_close(factor_transfer_loss(student, scales * teacher, **options), value)
    matched = student.clone().requires_grad_()
    zero = factor_transfer_loss(matched, student, **options)
    zero.backward()
    assert zero.item() == 0.0
    assert not matched.grad.any()
    assert factor_transfer_loss(3 * student, student, **options).item() == pytest.approx(0.0, abs=1e-15)


@pytest.mark.parametrize("dead", ["student", "teacher", "both"])
def test_a_factor_of_zeros_has_no_direction(dead: str) -> None:
    student, teacher = (random(1, 2, 3, 2, seed=seed).float() for seed in (1, 2))
    student = torch.zeros_like(student) if dead != "teacher" else student
    teacher = torch.zeros_like(teacher) if dead != "student" else teacher
    directions = [x.flatten() / x.norm() if x.any() else x.flatten() for x in (student, teacher)]
    leaf = student.clone().requires_grad_()
    loss = factor_transfer_loss(leaf, teacher)
    loss.backward()
    assert loss.item() == pytest.approx((directions[0] - directions[1]).abs().mean().item(), rel=1e-6)
    assert leaf.grad.isfinite().all()


@pytest.mark.parametrize(
    ("options", "tolerance"),
    [({}, 1e-5), (CODE, 1e-4), ({**CODE, "p2": 2.0}, 1e-3)],  # that variant's squares are rounded, as in its code
)
@pytest.mark.parametrize("scale", [1.0, 2.0**10, 2.0**-10])
@pytest.mark.parametrize("seed", range(1, 20, 2))
def test_float32_is_exact_for_a_tight_cluster_far_from_zero(
    options: dict[str, object], tolerance: float, scale: float, seed: int
) -> None:
    student, teacher = (tight(4, 8, 6, 5, seed=s) for s in (seed, seed + 1))
    inputs = [scale * student.float(), teacher]
    check_float32(lambda s, t: factor_transfer_loss(s, t, **options), inputs, tolerance=tolerance)


def test_the_paraphraser_learns_in_its_stage_and_only_there() -> None:
    torch.manual_seed(0)
    loss = FTLoss("a", "b", stage_length=3, stage_unit="step", stage_lr=0.1)
    loss.build({"a": (4, 2, 3, 3)}, {"b": (4, 4, 3, 3)})
    assert loss.stage == Stage(3, "step", runs_student=False, then_stops=False, lr=0.1)
    assert all(p.requires_grad for p in loss.parameters())
    teacher = torch.randn(4, 4, 3, 3)
    optimizer = torch.optim.SGD(loss.parameters(), lr=0.1)
    errors = []
    for _ in range(20):
        optimizer.zero_grad()
        error = loss.evaluate_stage(StepTensors(teacher_features={"b": teacher}))
        error.backward()
        assert all((p.grad is not None) == n.startswith("paraphrasers") for n, p in loss.named_parameters())
        optimizer.step()
        errors.append(error.item())
    assert errors == sorted(errors, reverse=True)
    optimizer.zero_grad()
    factors: list[torch.Tensor] = []
    loss.paraphrasers[0].register_forward_hook(lambda *call: factors.append(call[2]))
    before = copy.deepcopy(loss.state_dict())
    loss(torch.randn(4, 2, 3, 3), teacher).backward()
    optimizer.step()
    assert [factor.requires_grad for factor in factors] == [False]
    for name, value in loss.state_dict().items():
        if name.startswith("paraphrasers") or value.ndim == 4:  # a bias before batch normalisation has no effect
            assert torch.equal(value, before[name]) == name.startswith("paraphrasers")


def test_a_teacher_may_compute_in_another_format() -> None:
    loss = FTLoss("a", "b")
    loss.build({"a": (4, 2, 3, 3)}, {"b": (4, 4, 3, 3)})
    student, teacher = torch.randn(4, 2, 3, 3), torch.randn(4, 4, 3, 3).bfloat16()
    torch.testing.assert_close(loss(student, teacher), loss(student, teacher.float()))
    step = StepTensors(teacher_features={"b": teacher})
    assert loss.evaluate_stage(step).dtype == torch.float32


def test_no_stage_can_be_asked_for() -> None:
    assert FTLoss(stage_length=0).stage is None
    assert FTLoss().stage == Stage(None, runs_student=False)


@pytest.mark.parametrize(("rate", "channels"), [(0.5, 2), (0.7, 3), (0.01, 1), (2.0, 10)])
def test_the_rate_sets_the_channels_of_the_factor(rate: float, channels: int) -> None:
    loss = FTLoss("a", "b", rate=rate)
    loss.build({"a": (2, 3, 4, 4)}, {"b": (2, 5, 4, 4)})
    factors = [loss.translators[0](torch.randn(2, 3, 4, 4)), loss.paraphrasers[0](torch.randn(2, 5, 4, 4))]
    assert [factor.shape for factor in factors] == [(2, channels, 4, 4)] * 2


def test_an_empty_batch_is_zero() -> None:
    factor = torch.zeros(0, 3, 2, 2, requires_grad=True)
    loss = factor_transfer_loss(factor, torch.zeros(0, 3, 2, 2))
    loss.backward()
    assert loss.item() == 0.0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"variant": "paper"}, "expected variant 'authors' or 'repdistiller', got 'paper'"),
        ({"p2": 2.0}, "p1 and p2 have no effect on the authors' variant"),
        ({**CODE, "p1": 0.5}, "expected a whole number p1 >= 1 and p2 >= 1, got 0.5"),
        ({**CODE, "p2": 0.5}, "expected a whole number p1 >= 1 and p2 >= 1, got 2.0 and 0.5"),
        ({"rate": 0.0}, "expected rate > 0"),
        ({"stage_length": -1}, "length >= 0"),
        ({"stage_unit": "batch"}, "expected unit 'epoch' or 'step'"),
        ({"stage_lr": 0.0}, "expected lr > 0"),
    ],
)
def test_a_setting_that_cannot_be_is_refused(options: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        FTLoss(**options)
