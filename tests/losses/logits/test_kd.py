"""Response distillation: the authors' numbers, the laws of the formula, and its edges."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from lightning_kd.losses import AdaptiveTemperature, KDLoss
from lightning_kd.losses.base import LOGITS
from lightning_kd.losses.logits.kd import kd_loss
from tests.losses.case import random
from tests.losses.golden import Golden, check_golden, golden


@pytest.mark.parametrize("record", golden("kd", "__T1", "__T2", "__T4", "__T8"), ids=str)
def test_kd_equals_the_authors_code(record: Golden) -> None:
    check_golden(record, lambda s, t, _: kd_loss(s[0], t[0], temperature=record.hyper["T"]))


@pytest.mark.parametrize("record", golden("logit_std_kd", "__T2", "__T4"), ids=str)
def test_standardized_kd_equals_the_authors_code(record: Golden) -> None:
    check_golden(record, lambda s, t, _: kd_loss(s[0], t[0], temperature=record.hyper["T"], standardize=True))


def test_the_value_of_two_mirrored_samples() -> None:
    # p = softmax(2, 1) = (.73106, .26894) against its mirror image: (.73106 - .26894) * ln(.73106 / .26894) = .46212
    value = kd_loss(torch.tensor([[2.0, 1.0]]), torch.tensor([[1.0, 2.0]]), temperature=1.0)
    assert value.item() == pytest.approx(0.46212, abs=1e-5)


def test_adding_a_constant_to_a_sample_changes_nothing() -> None:
    student, teacher = random(4, 6, seed=1), random(4, 6, seed=2)
    shifted = kd_loss(student + random(4, 1, seed=3), teacher + random(4, 1, seed=4))
    assert shifted.item() == pytest.approx(kd_loss(student, teacher).item(), rel=1e-12)


def test_standardize_forgets_the_scale_of_each_sample() -> None:
    student, teacher = random(4, 6, seed=1), random(4, 6, seed=2)
    scale = random(4, 1, seed=3).exp()
    plain = kd_loss(student, teacher, standardize=True)
    assert kd_loss(student * scale, teacher / scale, standardize=True).item() == pytest.approx(plain.item(), rel=1e-6)


def test_a_high_temperature_gives_the_distance_of_the_centred_logits() -> None:
    student, teacher = random(4, 6, seed=1), random(4, 6, seed=2)
    difference = student - teacher
    limit = (difference - difference.mean(1, keepdim=True)).square().sum(1).mean().item() / (2 * 6)
    errors = [abs(kd_loss(student, teacher, temperature=t).item() - limit) for t in (10.0, 100.0, 1000.0)]
    assert errors[-1] < 1e-3 * limit
    assert all(larger > 5 * smaller for larger, smaller in pairwise(errors))


def test_the_minimum_is_at_the_teacher() -> None:
    teacher = random(4, 6, seed=2)
    for seed in range(5):
        assert kd_loss(teacher + 1e-3 * random(4, 6, seed=seed), teacher).item() > 0


def test_positions_count_as_samples() -> None:
    student, teacher = random(2, 5, 3, 4, seed=1), random(2, 5, 3, 4, seed=2)
    flat = [z.movedim(1, -1).reshape(-1, 5) for z in (student, teacher)]
    assert kd_loss(student, teacher).item() == pytest.approx(kd_loss(*flat).item(), rel=1e-12)


@pytest.mark.parametrize("standardize", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_contradicting_certainties_have_the_value_of_their_gap(dtype: torch.dtype, standardize: bool) -> None:
    student = torch.tensor([[1e4, -1e4]], dtype=dtype, requires_grad=True)
    value = kd_loss(student, -student, temperature=1.0, standardize=standardize)
    value.backward()
    # The gap of 20000, or of sqrt(2) after standardisation, times tanh of its half; bfloat16 rounds 1e4 to 9984.
    gap = math.sqrt(2.0) if standardize else 2 * float(student.detach()[0, 0])
    assert value.item() == pytest.approx(gap * math.tanh(gap / 2), rel=1e-6)
    assert student.grad is not None
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("constant", [0.0, 0.1, 7.0, -1e4])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16], ids=str)
def test_equal_logits_standardize_to_zero_with_a_gradient_of_ordinary_size(constant: float, dtype: torch.dtype) -> None:
    student = torch.full((2, 4), constant, dtype=dtype, requires_grad=True)
    teacher = torch.tensor([[3.0, 1.0, 2.0, 0.0], [5.0, 5.0, 5.0, 5.0]], dtype=dtype)
    value = kd_loss(student, teacher, temperature=2.0, standardize=True)
    expected = kd_loss(torch.zeros_like(student), teacher, temperature=2.0, standardize=True)
    assert value.item() == pytest.approx(expected.item(), rel=1e-6)
    value.backward()
    assert student.grad is not None
    assert student.grad.isfinite().all()
    assert 0.01 < student.grad.abs().max() < 1
    assert student.grad[0].argmin() == 0  # the descent raises the class that the teacher prefers


@pytest.mark.parametrize("shape", [(16, 1), (2, 1, 3, 4)], ids=str)
def test_a_single_logit_is_a_yes_or_no(shape: tuple[int, ...]) -> None:
    student, teacher = random(*shape, seed=1), random(*shape, seed=2)
    p, q = (teacher / 4).sigmoid(), (student / 4).sigmoid()
    naive = 16 * (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).mean()
    torch.testing.assert_close(kd_loss(student, teacher, temperature=4.0), naive)


def test_whether_a_single_logit_is_a_yes_or_no_must_be_said() -> None:
    one, five = {"<logits>": (2, 1)}, {"<logits>": (2, 5)}
    with pytest.raises(ValueError, match=r"\(2, 1\).*KDLoss\(binary=True\).*RegressionKDLoss"):
        KDLoss().build(one, one)
    with pytest.raises(ValueError, match=r"binary=True is for a single logit.*\(2, 5\).*MultiLabelKDLoss"):
        KDLoss(binary=True).build(five, five)
    KDLoss(binary=True).build(one, one)


@pytest.mark.parametrize("by", ["confidence", "entropy"])
def test_an_adaptive_temperature_of_a_single_logit_is_that_of_yes_and_no(by: str) -> None:
    teacher = random(6, 1, seed=3)
    two = torch.cat((teacher, torch.zeros_like(teacher)), dim=1)
    torch.testing.assert_close(AdaptiveTemperature(by)(teacher), AdaptiveTemperature(by)(two))


def test_a_single_class_cannot_be_standardized() -> None:
    with pytest.raises(ValueError, match=r"kd_loss: standardize needs at least 2 classes.*\(2, 1\)"):
        kd_loss(torch.zeros(2, 1), torch.zeros(2, 1), standardize=True)


def test_an_empty_batch_still_backpropagates() -> None:
    student = torch.zeros(0, 5, requires_grad=True)
    value = kd_loss(student, torch.zeros(0, 5), standardize=True)
    value.backward()
    assert value.item() == 0.0


def test_a_teacher_of_lower_precision_is_accepted() -> None:
    student, teacher = random(4, 6, seed=1), random(4, 6, seed=2).bfloat16()
    assert kd_loss(student, teacher).item() == pytest.approx(kd_loss(student, teacher.double()).item(), rel=1e-5)


def test_another_number_of_classes_is_told_in_the_users_words() -> None:
    with pytest.raises(ValueError, match=r"the teacher has 100 classes, the student 10.*HintLoss"):
        kd_loss(torch.zeros(8, 10), torch.zeros(8, 100))
    with pytest.raises(ValueError, match=r"KDLoss: the teacher has 100 classes, the student 10.*HintLoss"):
        KDLoss().build({LOGITS: (8, 10)}, {LOGITS: (8, 100)})


def test_token_logits_are_refused_with_a_remedy() -> None:
    with pytest.raises(ValueError, match=r"classes on axis 1.*TokenKDLoss.*\(M, C\)"):
        kd_loss(torch.zeros(2, 7, 30), torch.zeros(2, 7, 30))


def test_the_batch_size_of_the_probe_means_nothing() -> None:
    KDLoss(standardize=True).build({LOGITS: (2, 10)}, {LOGITS: (4, 10)})
    KDLoss().build({}, {})


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.inf, math.nan])
def test_the_temperature_must_be_positive(temperature: float) -> None:
    with pytest.raises(ValueError, match="kd_loss: expected temperature > 0"):
        kd_loss(torch.zeros(1, 2), torch.zeros(1, 2), temperature=temperature)
    with pytest.raises(ValueError, match="KDLoss: expected temperature > 0"):
        KDLoss(temperature=temperature)


def test_the_component_reads_both_logits_and_no_layer() -> None:
    loss = KDLoss()
    assert loss.needs_teacher_logits
    assert loss.needs_teacher
    assert loss.student_layers == loss.teacher_layers == ()
    assert not list(loss.parameters())


def test_gradient_of_the_plain_formula() -> None:
    # dL/ds = T (softmax(s/T) - softmax(t/T)) / B
    student, teacher = random(4, 6, seed=1).requires_grad_(), random(4, 6, seed=2)
    kd_loss(student, teacher, temperature=3.0).backward()
    expected: Tensor = 3.0 * ((student / 3).softmax(1) - (teacher / 3).softmax(1)) / 4
    torch.testing.assert_close(student.grad, expected.detach(), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    "make",
    [lambda: KDLoss("layer3", ""), lambda: KDLoss(None), lambda: KDLoss(weight="1"), lambda: KDLoss(weight=None)],
)
def test_what_is_no_number_is_named(make):
    with pytest.raises(TypeError, match=r"KDLoss: expected (temperature|weight) as a number or a schedule, got "):
        make()
