"""Metrics of student against teacher equal what numpy computes of the whole set, however it is split."""

import warnings

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MulticlassCalibrationError, MulticlassJaccardIndex

from lightning_kd.metrics import (
    AgreementOnMistakes,
    BitsPerByte,
    CalibrationError,
    ConfidenceCorrelation,
    FidelityKL,
    NegativeFlips,
    Perplexity,
    compare_outputs,
)
from lightning_kd.metrics.given import GivenMetrics
from lightning_kd.metrics.tokens import mean_negative_log_likelihood
from tests import support

ROWS, CLASSES = 41, 5


def outputs(*shape, seed=0, scale=2.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


STUDENT, TEACHER = outputs(ROWS, CLASSES), outputs(ROWS, CLASSES, seed=1)
TARGET = torch.where(torch.arange(ROWS) % 3 > 0, TEACHER.argmax(1), torch.arange(ROWS) % CLASSES)


def probabilities(scores):
    powers = np.exp(scores.double().numpy())
    return powers / powers.sum(1, keepdims=True)


def expected():
    """The definitions, row by row, in numpy."""
    student, teacher, target = probabilities(STUDENT), probabilities(TEACHER), TARGET.numpy()
    says, its = student.argmax(1), teacher.argmax(1)
    wrong = its != target

    def ece(p, says):
        total = 0.0
        for m in range(15):
            inside = (p.max(1) > m / 15) & (p.max(1) <= (m + 1) / 15)
            if inside.any():
                total += inside.sum() / ROWS * abs((says == target)[inside].mean() - p.max(1)[inside].mean())
        return total

    return {
        "accuracy": (says == target).mean(),
        "teacher_accuracy": (its == target).mean(),
        "agreement": (says == its).mean(),
        "agreement_on_mistakes": (says == its)[wrong].mean(),
        "fidelity_kl": (teacher * (np.log(teacher) - np.log(student))).sum(1).mean(),
        "calibration_error": ece(student, says),
        "teacher_calibration_error": ece(teacher, its),
        "negative_flips": ((its == target) & (says != target)).mean(),
        "confidence_correlation": np.corrcoef(student.max(1), teacher.max(1))[0, 1],
    }


AGAINST = {
    "agreement_on_mistakes": AgreementOnMistakes,
    "fidelity_kl": FidelityKL,
    "negative_flips": NegativeFlips,
    "confidence_correlation": ConfidenceCorrelation,
}


def test_whole_outputs_give_the_numbers_of_the_definitions():
    values = expected()
    assert 0 < values["agreement_on_mistakes"] < 1
    assert compare_outputs(STUDENT, TEACHER, TARGET) == pytest.approx(values, rel=1e-6)


def test_without_labels_what_needs_them_is_left_out():
    values = expected()
    kept = ("agreement", "fidelity_kl", "confidence_correlation")
    assert compare_outputs(STUDENT, TEACHER, None) == pytest.approx({name: values[name] for name in kept}, rel=1e-6)


@pytest.mark.parametrize("size", [1, 7, ROWS])
@pytest.mark.parametrize("name", AGAINST)
def test_batches_and_processes_do_not_change_the_value(name, size):
    # two metrics stand for two processes, whose states torchmetrics adds up
    processes = AGAINST[name](), AGAINST[name]()
    rows = zip(STUDENT.split(size), TEACHER.split(size), TARGET.split(size), strict=True)
    for number, row in enumerate(rows):
        processes[number % 2].update(*row)
    for state, value in processes[1].metric_state.items():
        setattr(processes[0], state, getattr(processes[0], state) + value)
    assert float(processes[0].compute()) == pytest.approx(expected()[name], rel=1e-6)


@pytest.mark.parametrize("metric", [*AGAINST.values(), CalibrationError])
def test_rows_without_a_label_do_not_count_for_what_reads_labels(metric):
    target = TARGET.clone()
    target[::4] = -100
    known = target != -100
    made, chosen = metric(), metric()
    given = (STUDENT,) if metric is CalibrationError else (STUDENT, TEACHER)
    made.update(*given, target)
    counts = known if metric is CalibrationError or metric.needs_target else torch.ones_like(known)
    chosen.update(*(one[counts] for one in given), TARGET[counts])
    assert float(made.compute()) == pytest.approx(float(chosen.compute()), rel=1e-12)


@pytest.mark.parametrize("metric", AGAINST.values())
@pytest.mark.parametrize("kind", ["pixels", "tokens"])
def test_pixels_and_tokens_are_samples_and_void_ones_are_none(metric, kind):
    student, teacher = outputs(2, CLASSES, 4, 6), outputs(2, CLASSES, 4, 6, seed=1)
    if kind == "tokens":
        student, teacher = (one.flatten(2).mT for one in (student, teacher))
    axis = 1 if kind == "pixels" else 2
    target = outputs(2, CLASSES, 4, 6, seed=2).argmax(1)
    target = target.flatten(1) if kind == "tokens" else target
    target[0, :2] = -100
    known = (target != -100).flatten()
    made, rows = metric(), metric()
    made.update(student, teacher, target)
    flat = [one.movedim(axis, -1).reshape(-1, CLASSES)[known] for one in (student, teacher)]
    rows.update(*flat, target.flatten()[known])
    assert float(made.compute()) == pytest.approx(float(rows.compute()), rel=1e-12)


def test_the_calibration_error_is_torchmetrics_own():
    for scores in (STUDENT, TEACHER, outputs(500, 3, seed=4)):
        target = torch.arange(len(scores)) % 3
        ours, theirs = CalibrationError(), MulticlassCalibrationError(scores.shape[1], n_bins=15, norm="l1")
        ours.update(scores, target)
        theirs.update(scores.softmax(1), target)
        assert float(ours.compute()) == pytest.approx(float(theirs.compute()), rel=1e-5)


def test_the_bins_of_a_reliability_diagram():
    metric = CalibrationError(bins=2)
    metric.update(torch.tensor([[0.5, 0.5], [0.9, 0.1], [0.2, 0.8], [1.0, 0.0]]).log(), torch.tensor([1, 0, 0, 0]))
    counts, confidence, right = metric.reliability()
    assert counts.tolist() == [1, 3]  # one half belongs to the lower bin, as in the paper; 1 to the upper
    torch.testing.assert_close(confidence, torch.tensor([0.5, 0.9], dtype=torch.float64))
    torch.testing.assert_close(right, torch.tensor([0.0, 2 / 3]))


def test_a_class_that_the_teacher_rules_out_adds_nothing():
    metric = FidelityKL()
    ruled_out = torch.tensor([[0.0, 0.0, -torch.inf]])
    metric.update(torch.tensor([[0.0, 0.0, 0.0]]), ruled_out)
    assert float(metric.compute()) == pytest.approx(np.log(3 / 2))
    metric.reset()
    metric.update(ruled_out, ruled_out)
    assert float(metric.compute()) == 0.0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bits_are_counted_in_more(dtype):
    student, teacher = STUDENT.to(dtype), TEACHER.to(dtype)
    expected = compare_outputs(student.double(), teacher.double(), TARGET)
    assert compare_outputs(student, teacher, TARGET) == pytest.approx(expected, rel=1e-5)


def test_what_has_nothing_to_count_is_not_a_number():
    perfect = torch.eye(3) * 5
    values = compare_outputs(perfect, perfect, torch.arange(3))
    assert np.isnan(values["agreement_on_mistakes"])
    assert np.isnan(values["confidence_correlation"])  # every confidence is the same
    assert values["negative_flips"] == 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torchmetrics: compute before update
        assert np.isnan(float(CalibrationError().compute()))


def test_mistakes_are_told():
    with pytest.raises(ValueError, match=r"equal shape, got \(2, 3\) and \(2, 4\)"):
        compare_outputs(torch.zeros(2, 3), torch.zeros(2, 4), torch.zeros(2).long())
    with pytest.raises(ValueError, match="the id 7, but there are 3 classes"):
        NegativeFlips().update(torch.zeros(2, 3), torch.zeros(2, 3), torch.tensor([0, 7]))
    with pytest.raises(ValueError, match="labels are needed"):
        NegativeFlips().update(torch.zeros(2, 3), torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"need one class id for each position, got a target of shape \(3,\)"):
        CalibrationError().update(torch.zeros(2, 3), torch.tensor([0, 1, 2]))
    with pytest.raises(ValueError, match="got a dict"):
        FidelityKL().update(torch.zeros(2, 3), torch.zeros(2, 3), {"boxes": 1})
    with pytest.raises(ValueError, match="bins must be > 0, got 0"):
        CalibrationError(bins=0)


def test_given_metrics_compare_student_and_teacher_once():
    given = GivenMetrics({"flips": NegativeFlips(), "kl": FidelityKL(), "ece": CalibrationError()})
    for row in zip(STUDENT.split(8), TEACHER.split(8), TARGET.split(8), strict=True):
        given.update(*row)
    values = {name: float(metric.compute()) for name, metric in given.updated().items()}
    whole = expected()
    names = {"flips": "negative_flips", "kl": "fidelity_kl", "ece": "calibration_error"}
    assert values == pytest.approx(
        {name: whole[key] for name, key in names.items()} | {"teacher_ece": whole["teacher_calibration_error"]}
    )
    unlabelled = GivenMetrics({"flips": NegativeFlips(), "kl": FidelityKL()})
    unlabelled.update(STUDENT, TEACHER, None)
    assert set(unlabelled.updated()) == {"kl"}


def test_a_fit_logs_given_metrics_of_student_and_teacher():
    made = support.module(metrics={"flips": NegativeFlips(), "kl": FidelityKL(), "ece": CalibrationError()})
    x, y = support.data(16).tensors
    rows = DataLoader(TensorDataset(x, y), batch_size=5)
    logged = support.fit(made, train=rows, val=rows, max_epochs=1).callback_metrics
    made.student.eval()
    with torch.no_grad():
        expected = compare_outputs(made.student(x), made.run.teacher.module(x), y)
    assert float(logged["val/flips"]) == pytest.approx(expected["negative_flips"])
    assert float(logged["val/kl"]) == pytest.approx(expected["fidelity_kl"], rel=1e-5)
    assert float(logged["val/ece"]) == pytest.approx(expected["calibration_error"], rel=1e-5)
    assert float(logged["val/teacher_ece"]) == pytest.approx(expected["teacher_calibration_error"], rel=1e-5)
    assert "val/teacher_kl" not in logged


def test_torchmetrics_own_mean_iou_fits_a_segmentation():
    student = torch.zeros(1, 2, 1, 4)
    student[0, 1, 0, :2] = 3.0  # says 1, 1, 0, 0
    target = torch.tensor([[[1, 0, 0, 255]]])
    given = GivenMetrics({"iou": MulticlassJaccardIndex(2, ignore_index=255)})
    given.update(student, None, target)
    # class 0: one of two, class 1: one of two
    assert float(given.updated()["iou"].compute()) == pytest.approx(0.5)


def test_bits_per_byte_and_perplexity_of_tokens():
    scores, target = outputs(2, 6, 7), torch.arange(12).reshape(2, 6) % 7
    target[1, 4:] = -100
    p = probabilities(scores.reshape(-1, 7))[np.arange(12), target.clamp_min(0).flatten().numpy()][:10]
    metric, perplexity = BitsPerByte(), Perplexity()
    for row in range(2):
        metric.update(scores[row : row + 1], target[row : row + 1], num_bytes=(11, 9)[row])
        known = target[row] != -100
        perplexity.update(mean_negative_log_likelihood(scores[row][known], target[row][known]), known.sum())
    assert float(metric.compute()) == pytest.approx(-np.log2(p).sum() / 20)
    assert float(perplexity.compute()) == pytest.approx(np.exp(-np.log(p).mean()))
    with pytest.raises(ValueError, match="not of the same tokens"):
        metric.update(scores, target[:, 1:], 3)
