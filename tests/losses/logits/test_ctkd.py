"""The learned temperature: the authors' numbers, which way it goes, how it is trained, and that it resumes."""

import math

import pytest
import torch
from torch import Tensor, nn

from lightning_kd.functional import ctkd_loss, kd_loss
from lightning_kd.losses import CTKDLoss
from lightning_kd.schedules import Moment
from tests import support
from tests.losses.case import random
from tests.losses.golden import Golden, check_golden, golden


class Learned(nn.Module):
    """Holds the temperature under the name that it has in the record."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.global_T = nn.Parameter(torch.tensor([value], dtype=torch.float64))


@pytest.mark.parametrize("record", golden("ctkd", "__epoch1", "__epoch4", "__epoch30"), ids=str)
def test_it_equals_the_authors_code(record: Golden) -> None:
    learned, reversal = Learned(record.hyper["theta"]), record.hyper["lambda"]
    check_golden(record, lambda s, t, _: ctkd_loss(s[0], t[0], learned.global_T, reversal=reversal), learned)


@pytest.mark.parametrize("record", golden("ctkd", "__epoch1", "__epoch4", "__epoch30"), ids=str)
def test_the_reversal_grows_as_in_the_authors_code(record: Golden) -> None:
    loss = CTKDLoss()
    assert loss.changes_over_time
    loss.set_moment(Moment(epoch=int(record.hyper["epoch"]) - 1))  # theirs count from 1
    assert loss.reversal_now == pytest.approx(record.hyper["lambda"], rel=1e-12)


@pytest.mark.parametrize(("step", "expected"), [(0, 1.0), (1, 2.0), (7, 2.0)])
def test_the_reversal_may_grow_by_steps(step: int, expected: float) -> None:
    loss = CTKDLoss(reversal=2.0, length=2, unit="step")
    loss.set_moment(Moment(step=step, epoch=99))
    assert loss.reversal_now == pytest.approx(expected)


@pytest.mark.parametrize("shape", [(4, 5), (3, 4, 2, 2)], ids=str)
def test_the_value_is_that_of_kd_and_the_gradient_is_its_slope_turned_round(shape: tuple[int, ...]) -> None:
    student, teacher = random(*shape, seed=1).requires_grad_(), random(*shape, seed=2)
    theta = torch.tensor([0.3], dtype=torch.float64, requires_grad=True)
    value = ctkd_loss(student, teacher, theta, low=2.0, high=5.0, reversal=0.7)

    def at(raw: float) -> float:
        return 2 + 3 / (1 + math.exp(-raw))

    expected = kd_loss(student, teacher, temperature=at(0.3))
    torch.testing.assert_close(value, expected)
    slope, own = torch.autograd.grad(value, [student, theta])
    torch.testing.assert_close(slope, torch.autograd.grad(expected, student)[0])
    higher, lower = (kd_loss(student.detach(), teacher, temperature=at(0.3 + d)).item() for d in (1e-5, -1e-5))
    assert own.item() == pytest.approx(-0.7 * (higher - lower) / 2e-5, rel=1e-6)


def test_each_sample_may_have_a_temperature() -> None:
    """The mean of the losses of the samples, each with the square of its own temperature, as the authors say it."""
    student, teacher = random(3, 5, seed=1), random(3, 5, seed=2)
    theta = torch.tensor([0.0, 1.0, -2.0], dtype=torch.float64, requires_grad=True)
    own = (1 + 20 * theta.detach().sigmoid()).tolist()
    each = [kd_loss(student[i, None], teacher[i, None], temperature=own[i]) for i in range(3)]
    value = ctkd_loss(student, teacher, theta)
    torch.testing.assert_close(value, torch.stack(each).mean())
    assert torch.autograd.grad(value, theta)[0].all()


def test_a_number_without_an_axis_is_a_temperature_for_all() -> None:
    student, teacher = random(3, 5, seed=1), random(3, 5, seed=2)
    values = [ctkd_loss(student, teacher, torch.zeros(shape, dtype=torch.float64)) for shape in ((), (1,), (3,))]
    torch.testing.assert_close(values[0], values[1])
    torch.testing.assert_close(values[0], values[2])


def test_a_temperature_for_something_else_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected raw_temperature .* got shape \(2,\) for logits \(3, 2\)"):
        ctkd_loss(torch.zeros(3, 2), torch.zeros(3, 2), torch.zeros(2))


def test_logits_of_other_classes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"ctkd_loss: .*teacher has 4 classes, the student 3"):
        ctkd_loss(torch.zeros(2, 3), torch.zeros(2, 4), torch.zeros(1))


def test_a_single_logit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"ctkd_loss: expected at least 2 classes.*\(2, 1\).*kd_loss"):
        ctkd_loss(torch.zeros(2, 1), torch.zeros(2, 1), torch.zeros(1))
    with pytest.raises(ValueError, match=r"CTKDLoss: a single logit.*use KDLoss"):
        CTKDLoss().build({"<logits>": (2, 1)}, {"<logits>": (2, 1)})


@pytest.mark.parametrize("option", [{"low": 0.0}, {"low": 3.0, "high": 3.0}, {"high": math.inf}], ids=str)
def test_a_range_that_is_none_is_refused(option: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="ctkd_loss: expected 0 < low < high"):
        ctkd_loss(torch.zeros(1, 2), torch.zeros(1, 2), torch.zeros(1), **option)
    with pytest.raises(ValueError, match="CTKDLoss: expected 0 < low < high"):
        CTKDLoss(**option)


def test_a_curriculum_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="expected a finite reversal >= 0, got -1"):
        CTKDLoss(reversal=-1.0)
    with pytest.raises(ValueError, match="CTKDLoss: expected a whole number length >= 1, got 0"):
        CTKDLoss(length=0)
    with pytest.raises(ValueError, match="CTKDLoss: expected unit 'epoch' or 'step', got 'day'"):
        CTKDLoss(unit="day")  # type: ignore[arg-type]


def test_half_precision_autocast_takes_scores_of_ten_thousand() -> None:
    student, loss = torch.tensor([[1e4, 0.0, -1e4]], requires_grad=True), CTKDLoss(length=1)
    with torch.autocast("cpu", dtype=torch.float16):
        value = loss(student.half(), torch.tensor([[0.0, 1e4, 0.0]]).half())
    value.backward()
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(15.62117 * 1e4, rel=1e-3)  # T^2 times a gap of 1e4 / T
    for gradient in (student.grad, loss.raw_temperature.grad):
        assert gradient is not None
        assert gradient.isfinite().all()


def fitted(door: str) -> tuple[CTKDLoss, Tensor]:
    """Fit for two epochs, and return the loss and the temperature that was logged last."""
    loss = CTKDLoss(high=5.0, length=1)
    made, callbacks = support.through(door, support.student(), guide=support.teacher(), losses=[loss])
    trainer = support.fit(made, callbacks=callbacks, max_epochs=2, limit_val_batches=0)
    return loss, trainer.callback_metrics["train/ctkd/temperature"]


@pytest.mark.parametrize("door", ["module", "callback"])
def test_the_optimizer_trains_it_and_it_is_logged(door: str) -> None:
    loss, logged = fitted(door)
    assert loss.raw_temperature.item() != 1.0
    assert 1.0 < logged.item() < 5.0
    assert loss.temperature.item() == pytest.approx(logged.item(), abs=0.2)
    assert loss.temperature.shape == ()


def test_it_goes_where_the_loss_is_larger_and_stays_where_it_is_told_to() -> None:
    student, teacher = random(16, 5, seed=1), random(16, 5, seed=2)
    found = {}
    for reversal in (0.0, 1.0):
        loss = CTKDLoss(reversal=reversal, length=1).double()
        optimizer = torch.optim.SGD(loss.parameters(), lr=0.5)
        values = []
        for _ in range(5):
            optimizer.zero_grad()
            value = loss(student, teacher)
            value.backward()
            optimizer.step()
            values.append(value.item())
        found[reversal] = values
    assert found[0.0] == [found[0.0][0]] * 5
    assert found[1.0] == sorted(found[1.0])
    assert found[1.0][-1] > found[1.0][0]
