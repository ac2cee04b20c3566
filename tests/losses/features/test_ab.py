"""Activation boundaries: the authors' numbers, what the loss does not see, and the first stage."""

import pytest
import torch

from lightning_kd.functional import ab_loss
from lightning_kd.losses import ABLoss
from tests.losses.case import check_float32, random, tight
from tests.losses.golden import Golden, check_golden, golden


@pytest.mark.parametrize("record", golden("ab", "", "__m2"), ids=str)
def test_it_equals_the_authors_code(record: Golden) -> None:
    margin = record.hyper["margin"]
    check_golden(
        record,
        lambda s, t, _: sum(
            ab_loss(one, other, margin=margin) * 2.0 ** (i - len(s) + 1)
            for i, (one, other) in enumerate(zip(s, t, strict=True))
        ),
    )


@pytest.mark.parametrize("record", golden("ab", ""), ids=str)
def test_every_stage_equals_the_authors_code(record: Golden) -> None:
    items = record.arrays["loss_items"]
    for i, item in enumerate(items):
        value = ab_loss(record.arrays[f"s{i}"], record.arrays[f"t{i}"]) * 2.0 ** (i - len(items) + 1)
        assert value.item() == pytest.approx(item.item(), rel=1e-12)


@pytest.mark.parametrize("margin", [0.3, 2.0])
def test_it_equals_a_loop_over_all_responses(margin: float) -> None:
    student, teacher = random(3, 2, 5, 3, seed=1), random(3, 2, 5, 3, seed=2)
    expected = 0.0
    for s, t in zip(student.flatten().tolist(), teacher.flatten().tolist(), strict=True):
        if t > 0 and s <= margin:
            expected += (s - margin) ** 2
        if t <= 0 and s > -margin:
            expected += (s + margin) ** 2
    value = ab_loss(student, teacher, margin=margin)
    assert value.item() == pytest.approx(0.003 * expected / 3, rel=1e-12)


@pytest.mark.parametrize(("student_size", "teacher_size"), [((6, 3), (3, 5)), ((1, 1), (2, 2)), ((4, 4), (3, 3))])
def test_the_larger_map_is_pooled_along_each_axis(student_size: tuple[int, int], teacher_size: tuple[int, int]) -> None:
    student, teacher = random(3, 4, *student_size, seed=1), random(3, 4, *teacher_size, seed=2)
    size = [min(pair) for pair in zip(student_size, teacher_size, strict=True)]
    pooled = [torch.nn.functional.adaptive_avg_pool2d(features, size) for features in (student, teacher)]
    torch.testing.assert_close(ab_loss(student, teacher), ab_loss(*pooled))


def test_it_sees_the_signs_of_the_teacher_alone() -> None:
    student, teacher = random(3, 2, 5, 3, seed=1), random(3, 2, 5, 3, seed=2)
    assert torch.equal(ab_loss(student, 100 * teacher), ab_loss(student, teacher))
    assert torch.equal(ab_loss(student, teacher.sign()), ab_loss(student, teacher))


def test_a_student_beyond_the_margin_has_nothing_to_learn() -> None:
    teacher = random(3, 2, 5, 3, seed=2)
    student = (1.5 * teacher.sign()).requires_grad_()
    value = ab_loss(student, teacher)
    value.backward()
    assert value.item() == 0.0
    assert not student.grad.any()


def test_float32_is_exact_for_a_tight_cluster_far_from_zero() -> None:
    student, teacher = (tight(4, 8, 5, 3, seed=seed) for seed in (1, 2))
    check_float32(lambda s, t: ab_loss(s, t - 5.0), [student, teacher])


@pytest.mark.parametrize("margin", [0.0, -1.0, float("nan"), float("inf")])
def test_the_margin_must_be_positive(margin: float) -> None:
    with pytest.raises(ValueError, match="ab_loss: expected margin > 0"):
        ab_loss(torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 1, 1), margin=margin)
    with pytest.raises(ValueError, match="ABLoss: expected margin > 0"):
        ABLoss(margin=margin)


def test_the_first_stage_is_all_there_is_to_it() -> None:
    stage = ABLoss(stage_length=30, stage_unit="step").stage
    assert stage is not None
    assert (stage.length, stage.unit, stage.then_stops, stage.runs_student) == (30, "step", True, True)
    default = ABLoss().stage
    assert default is not None
    assert (default.length, default.unit) == (None, "epoch")


def test_without_a_first_stage_it_is_a_part_like_any_other() -> None:
    assert ABLoss(stage_length=0).stage is None


@pytest.mark.parametrize(
    "options", [{"stage_length": -1}, {"stage_length": 1.5}, {"stage_length": 0, "stage_unit": "day"}]
)
def test_a_stage_that_cannot_be_is_refused(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="expected"):
        ABLoss(**options)


def test_two_losses_do_not_share_a_stage() -> None:
    first, second = ABLoss(), ABLoss()
    assert first.stage is not second.stage


def built(**options: object) -> ABLoss:
    torch.manual_seed(0)
    loss = ABLoss(["a", "b"], ["a", "b"], **options)  # type: ignore[arg-type]
    loss.build({"a": (2, 3, 4, 4), "b": (2, 3, 2, 2)}, {"a": (2, 3, 4, 4), "b": (2, 5, 2, 2)})
    return loss


def test_maps_of_equal_shape_are_compared_as_they_are() -> None:
    loss = built()
    student, teacher = random(2, 3, 4, 4, seed=1).float(), random(2, 3, 4, 4, seed=2).float()
    assert torch.equal(loss.compare(student, teacher, loss.projectors[0]), ab_loss(student, teacher))
    assert [name for name, _ in loss.named_parameters()] == [f"projectors.1.{x}" for x in CONNECTOR]


CONNECTOR = ("conv.weight", "bn.weight", "bn.bias")


def test_a_checkpoint_that_holds_a_connector_gives_it_back() -> None:
    old, new = built(connector="all"), built()
    state = torch.get_rng_state()
    new.load_state_dict(old.state_dict())
    assert torch.equal(torch.get_rng_state(), state)
    maps = [random(2, 3, 4, 4, seed=1).float(), random(2, 3, 2, 2, seed=3).float()]
    goals = [random(2, 3, 4, 4, seed=2).float(), random(2, 5, 2, 2, seed=4).float()]
    assert torch.equal(new(maps, goals), old(maps, goals))
    assert new.state_dict().keys() == old.state_dict().keys()


def test_an_unknown_choice_of_connector_is_refused() -> None:
    with pytest.raises(ValueError, match="connector 'differ' or 'all', got 'none'"):
        ABLoss(connector="none")  # type: ignore[arg-type]
