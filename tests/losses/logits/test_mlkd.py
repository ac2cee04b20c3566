"""Multi-level distillation: the authors' numbers and whole recipe, the definition pair by pair, and many positions."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_kd.functional import kd_loss, mlkd_loss
from lightning_kd.losses import MLKDLoss
from lightning_kd.schedules import LinearSchedule, Moment
from tests.losses.case import check_float32, random, tight
from tests.losses.golden import Golden, check_golden, golden


@pytest.mark.parametrize("record", golden("mlkd", "", "__instance", "__batch", "__class"), ids=str)
def test_it_equals_the_authors_code(record: Golden) -> None:
    check_golden(record, lambda s, t, _: mlkd_loss(s[0], t[0], **record.hyper))


@pytest.mark.parametrize("record", golden("mlkd", "__recipe"), ids=str)
def test_the_authors_whole_recipe_is_made_of_it(record: Golden) -> None:
    """Of a weak and a strong view, as the docstring says."""

    def formula(students: list[Tensor], teachers: list[Tensor], rest: dict[str, Tensor]) -> Tensor:
        weak, strong = zip(students, teachers, strict=True)
        labelled = sum(F.cross_entropy(logits, rest["labels"]) for logits in students)
        taught = 0.5 * mlkd_loss(*weak)
        taught = taught + sum(kd_loss(*strong, temperature=one) for one in (4.0, 3.0, 5.0))
        taught = taught + sum(kd_loss(*weak, temperature=one) for one in (2.0, 6.0))
        return record.hyper["ce"] * labelled + record.hyper["kd"] * taught

    check_golden(record, formula)


def loop(student: Tensor, teacher: Tensor, temperature: float, instance: float, batch: float, classes: float) -> float:
    """Pair by pair from the definition."""
    p, q = ((logits / temperature).softmax(1) for logits in (student, teacher))
    divergence = sum((b * (b / a).log()).sum() for a, b in zip(p, q, strict=True)) / len(p)
    samples = sum((q[i] @ q[j] - p[i] @ p[j]) ** 2 for i in range(len(p)) for j in range(len(p))) / len(p)
    count = p.shape[1]
    alike = sum((q[:, i] @ q[:, j] - p[:, i] @ p[:, j]) ** 2 for i in range(count) for j in range(count)) / count
    return float(instance * temperature**2 * divergence + batch * samples + classes * alike)


@pytest.mark.parametrize("shape", [(3, 7), (7, 3), (2, 3, 3, 1), (1, 4, 2, 2, 3)], ids=str)
def test_it_equals_a_loop_over_pairs(shape: tuple[int, ...]) -> None:
    student, teacher = (2 * random(*shape, seed=seed) for seed in (1, 2))
    flat = [z.movedim(1, -1).reshape(-1, shape[1]) for z in (student, teacher)]
    expected = sum(loop(*flat, temperature, 0.5, 3.0, 2.0) for temperature in (1.0, 2.5))
    value = mlkd_loss(student, teacher, temperatures=(1.0, 2.5), instance=0.5, batch=3.0, classes=2.0)
    assert value.item() == pytest.approx(expected, rel=1e-10)


def test_as_many_positions_as_a_picture_has_need_no_table_of_their_pairs() -> None:
    """Of 160,000 positions all pairs would be 25 billion numbers."""
    student, teacher = (torch.randn(1, 3, 400, 400, generator=torch.Generator().manual_seed(i)) for i in (1, 2))
    student.requires_grad_()
    value = mlkd_loss(student, teacher, temperatures=[2.0])
    value.backward()
    assert value.isfinite()
    assert student.grad is not None
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("batch", [3, 12])
def test_float32_keeps_the_digits_of_a_small_difference(batch: int) -> None:
    """Of both ways to take the norm: with fewer samples than classes, and with more."""
    teacher = random(batch, 6, seed=1).float()
    student = teacher + 1e-4 * random(batch, 6, seed=2).float()
    options = {"temperatures": [1.0], "instance": 0.0}
    gradients = []
    for dtype in (torch.float32, torch.float64):
        leaf = student.to(dtype).requires_grad_()
        value = mlkd_loss(leaf, teacher.to(dtype), **options)
        gradients.append(torch.autograd.grad(value, leaf)[0].double())
    assert value.item() == pytest.approx(mlkd_loss(student, teacher, **options).item(), rel=1e-4)
    single, exact = gradients
    assert (single - exact).abs().max() <= 1e-2 * exact.abs().max()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("gap", [1000.0, -1000.0, 1e4, 3e4])
def test_a_gap_of_a_thousand_has_a_finite_gradient(gap: float, dtype: torch.dtype) -> None:
    student = torch.zeros(2, 3, dtype=dtype)
    student[:, 0] = gap
    teacher = -student
    student.requires_grad_()
    value = mlkd_loss(student, teacher, temperatures=[1.0])
    value.backward()
    # one is certain of the first class, the other halves the rest: an entropy of ln 2 is left out or added
    divergence = abs(student[0, 0].item()) + math.copysign(math.log(2.0), -gap)
    # rows (1, 0, 0) against (0, 1/2, 1/2): 4 differences of 1/2 over 2 samples; of the classes 2 against 0 and four 1/2
    assert value.item() == pytest.approx(divergence + 4 / 4 / 2 + (4 + 4 / 4) / 3, rel=1e-6)
    assert student.grad is not None
    assert student.grad.isfinite().all()


def test_half_precision_autocast_takes_scores_of_ten_thousand() -> None:
    student = torch.tensor([[1e4, 0.0, -1e4]], requires_grad=True)
    with torch.autocast("cpu", dtype=torch.float16):
        value = mlkd_loss(student.half(), torch.tensor([[0.0, 1e4, 0.0]]).half())
    value.backward()
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx((2 + 3 + 4 + 5 + 6) * 1e4, rel=1e-3)
    assert student.grad is not None
    assert student.grad.isfinite().all()


def test_autocast_leaves_the_likeness_in_full_precision() -> None:
    student, teacher = (random(64, 10, seed=seed).float() for seed in (1, 2))
    options = {"temperatures": [1.0], "instance": 0.0}
    expected = mlkd_loss(student, teacher, **options)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = mlkd_loss(student, teacher, **options)
    torch.testing.assert_close(value, expected, rtol=1e-6, atol=0.0)


def test_two_classes_are_enough() -> None:
    student, teacher = random(4, 2, seed=1), random(4, 2, seed=2)
    expected = loop(student, teacher, 2.0, 1.0, 1.0, 1.0)
    assert mlkd_loss(student, teacher, temperatures=[2.0]).item() == pytest.approx(expected, rel=1e-10)


def test_a_single_logit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"mlkd_loss: expected at least 2 classes.*\(2, 1\).*kd_loss"):
        mlkd_loss(torch.zeros(2, 1), torch.zeros(2, 1))
    with pytest.raises(ValueError, match=r"MLKDLoss: a single logit.*use KDLoss"):
        MLKDLoss().build({"<logits>": (2, 1)}, {"<logits>": (2, 1)})


def test_tokens_are_refused_with_the_remedy() -> None:
    with pytest.raises(ValueError, match=r"mlkd_loss: expected logits .*TokenKDLoss"):
        mlkd_loss(torch.zeros(2, 3, 5), torch.zeros(2, 3, 5))


@pytest.mark.parametrize("option", [{"batch": -1.0}, {"classes": math.nan}, {"instance": -1.0}], ids=str)
def test_a_factor_out_of_range_is_refused(option: dict[str, float]) -> None:
    name = next(iter(option))
    with pytest.raises(ValueError, match=f"mlkd_loss: expected .*{name}"):
        mlkd_loss(torch.zeros(1, 2), torch.zeros(1, 2), **option)
    with pytest.raises(ValueError, match=f"MLKDLoss: expected .*{name}"):
        MLKDLoss(**option)


@pytest.mark.parametrize("temperatures", [[], [2.0, 0.0], [math.inf]], ids=str)
def test_temperatures_out_of_range_are_refused(temperatures: list[float]) -> None:
    with pytest.raises(ValueError, match=r"mlkd_loss: expected .*temperatures"):
        mlkd_loss(torch.zeros(1, 2), torch.zeros(1, 2), temperatures=temperatures)
    with pytest.raises(ValueError, match=r"MLKDLoss: expected .*temperatures"):
        MLKDLoss(temperatures)


def test_every_factor_may_follow_a_schedule() -> None:
    schedule = LinearSchedule(1.0, 3.0, length=2)
    loss = MLKDLoss(instance=schedule, batch=schedule, classes=schedule)
    assert loss.changes_over_time
    loss.moment = Moment(epoch=1)
    student, teacher = random(4, 5, seed=1), random(4, 5, seed=2)
    expected = mlkd_loss(student, teacher, instance=2.0, batch=2.0, classes=2.0)
    torch.testing.assert_close(loss(student, teacher), expected)


def test_it_compares_samples() -> None:
    assert MLKDLoss.relational
    assert MLKDLoss().gather
    assert not MLKDLoss(gather=False).options()["gather"]


def test_float32_is_exact_for_a_tight_cluster_far_from_zero() -> None:
    check_float32(lambda s, t: mlkd_loss(s, t, temperatures=[1.0]), [tight(8, 10, seed=seed) for seed in (1, 2)])
