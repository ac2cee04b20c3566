"""Channel-wise distillation: the authors' numbers, what it does not see, and which layers it reads."""

import pytest
import torch

from lightning_kd.functional import cwd_loss, kd_loss
from lightning_kd.losses import CWDLoss
from lightning_kd.projectors import ConvProjector, IdentityProjector
from lightning_kd.schedules import LinearSchedule, Moment
from tests.losses.case import check_float32, random, tight
from tests.losses.golden import Golden, check_golden, golden


@pytest.mark.parametrize("record", golden("cwd"), ids=str)
def test_it_equals_the_authors_code(record: Golden) -> None:
    check_golden(record, lambda s, t, _: cwd_loss(s[0], t[0], temperature=record.hyper["T"]))


def test_it_is_kd_with_positions_in_the_place_of_classes() -> None:
    student, teacher = random(3, 4, 2, 5, seed=1), random(3, 4, 2, 5, seed=2)
    expected = kd_loss(student.reshape(12, 10), teacher.reshape(12, 10), temperature=2.5)
    torch.testing.assert_close(cwd_loss(student, teacher, temperature=2.5), expected)


def test_it_sees_neither_the_order_of_positions_nor_what_is_added_to_a_channel() -> None:
    student, teacher = random(4, 5, 3, 2, seed=1), random(4, 5, 3, 2, seed=2)
    order, added = torch.randperm(3), 100 * random(4, 5, 1, 1, seed=3)
    changed = cwd_loss((student + added)[:, :, order], teacher[:, :, order] - added)
    torch.testing.assert_close(changed, cwd_loss(student, teacher))


def test_float32_is_exact_for_a_tight_cluster_far_from_zero() -> None:
    check_float32(cwd_loss, [tight(4, 8, 3, 5, seed=seed) for seed in (1, 2)], tolerance=1e-3)


def test_the_temperature_follows_its_schedule() -> None:
    loss = CWDLoss("a", "b", temperature=LinearSchedule(8.0, 2.0, length=10, unit="step"))
    loss.build({"a": (4, 3, 2, 2)}, {"b": (4, 3, 2, 2)})
    student, teacher = random(4, 3, 2, 2, seed=1), random(4, 3, 2, 2, seed=2)
    for step, temperature in ((0, 8.0), (5, 5.0), (10, 2.0)):
        loss.set_moment(Moment(step=step))
        torch.testing.assert_close(loss(student, teacher), cwd_loss(student, teacher, temperature=temperature))


def test_a_projector_is_made_where_the_channels_differ_and_no_offset_that_would_do_nothing() -> None:
    loss = CWDLoss(["a", "b"], ["c", "d"])
    loss.build({"a": (4, 3, 2, 2), "b": (4, 3, 2, 2)}, {"c": (4, 3, 2, 2), "d": (4, 5, 2, 2)})
    same, other = loss.projectors
    assert isinstance(same, IdentityProjector)
    assert isinstance(other, ConvProjector)
    assert [name for name, _ in loss.named_parameters()] == ["projectors.1.conv.weight"]


def test_the_temperature_must_be_positive() -> None:
    with pytest.raises(ValueError, match="cwd_loss: expected temperature > 0, got 0"):
        cwd_loss(random(1, 1, 1, 2, seed=1), random(1, 1, 1, 2, seed=2), temperature=0.0)
    with pytest.raises(ValueError, match="CWDLoss: expected temperature > 0, got -1"):
        CWDLoss("a", "b", temperature=-1.0)
