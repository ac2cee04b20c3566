"""Metrics of the user get what they read, whatever the size of the batches."""

from functools import partial

import pytest
import torch
from lightning import Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import ClasswiseWrapper, Metric
from torchmetrics import classification as tm
from torchmetrics.regression import MeanAbsoluteError

from lightning_kd import DistillationModule
from lightning_kd.losses import RegressionKDLoss
from lightning_kd.metrics.given import GivenMetrics

ROWS = 23


def _of(kind: str) -> tuple[Tensor, Tensor]:
    """Return small scores, many of which are in [0, 1], and labels."""
    made = torch.Generator().manual_seed(3)
    if kind == "binary":
        return torch.randn(ROWS, generator=made), torch.randint(0, 2, (ROWS,), generator=made)
    if kind == "multilabel":
        return torch.randn(ROWS, 3, generator=made), torch.randint(0, 2, (ROWS, 3), generator=made)
    return torch.randn(ROWS, 3, generator=made), torch.randint(0, 3, (ROWS,), generator=made)


def _computed(metric: Metric, outputs: Tensor, target: Tensor, size: int, *, probabilities: bool = False) -> Tensor:
    given = GivenMetrics({"m": metric}, probabilities=probabilities)
    for scores, labels in zip(outputs.split(size), target.split(size), strict=True):
        given.update(scores, None, labels)
    value: Tensor = given.updated()["m"].compute()
    return value


METRICS: list[tuple[str, Metric]] = [
    ("binary", tm.BinaryAccuracy()),
    ("binary", tm.BinaryF1Score()),
    ("binary", tm.BinaryAUROC()),
    ("binary", tm.BinaryAveragePrecision()),
    ("binary", tm.BinaryCalibrationError()),
    ("multilabel", tm.MultilabelAccuracy(3)),
    ("multilabel", tm.MultilabelF1Score(3)),
    ("multilabel", tm.MultilabelAUROC(3)),
    ("multilabel", tm.MultilabelAveragePrecision(3)),
    ("multiclass", tm.MulticlassAccuracy(3)),
    ("multiclass", tm.MulticlassAUROC(3)),
    ("multiclass", tm.MulticlassAveragePrecision(3)),
    ("multiclass", tm.MulticlassCalibrationError(3)),
]


@pytest.mark.parametrize(("kind", "metric"), METRICS, ids=[type(metric).__name__ for _, metric in METRICS])
def test_numbers_do_not_depend_on_the_size_of_batches(kind: str, metric: Metric) -> None:
    outputs, target = _of(kind)
    expected = metric.clone()
    expected.update(outputs.softmax(dim=1) if kind == "multiclass" else outputs.sigmoid(), target)
    for size in (1, 2, 5, ROWS):
        torch.testing.assert_close(_computed(metric, outputs, target, size), expected.compute())


def test_metrics_in_a_wrapper_get_probabilities_too() -> None:
    outputs, target = _of("multiclass")
    wrapped = ClasswiseWrapper(tm.MulticlassAUROC(3, average=None))
    assert _computed(wrapped, outputs, target, 1) == _computed(wrapped, outputs, target, ROWS)


@pytest.mark.parametrize(("kind", "metric"), METRICS[:9], ids=[type(metric).__name__ for _, metric in METRICS[:9]])
def test_whole_float_labels_count_as_integers(kind: str, metric: Metric) -> None:
    outputs, target = _of(kind)
    assert torch.equal(_computed(metric, outputs, target.float(), 5), _computed(metric, outputs, target, 5))


def test_probabilities_of_the_network_stay_as_they_are() -> None:
    outputs, target = _of("binary")
    chances = outputs.sigmoid()
    right = ((chances > 0.5) == (target == 1)).float().mean()
    torch.testing.assert_close(_computed(tm.BinaryAccuracy(), chances, target, 5, probabilities=True), right)
    outputs, target = _of("multiclass")
    expected = tm.MulticlassCalibrationError(3)
    expected.update(outputs.softmax(dim=1), target)
    torch.testing.assert_close(
        _computed(tm.MulticlassCalibrationError(3), outputs.softmax(dim=1), target, 5), expected.compute()
    )


def test_other_metrics_get_the_outputs_as_they_are() -> None:
    class Own(tm.BinaryAccuracy):
        def update(self, preds: Tensor, target: Tensor) -> None:
            assert preds.min() < 0
            super().update(preds, target)

    outputs, target = _of("binary")
    _computed(Own(), outputs, target, ROWS)
    assert float(_computed(MeanAbsoluteError(), outputs, outputs + 2, 5)) == pytest.approx(2.0)


def test_scores_of_16_bits_near_zero_keep_their_side() -> None:
    outputs = torch.tensor([1e-3, -1e-3], dtype=torch.bfloat16)
    assert float(_computed(tm.BinaryAccuracy(), outputs, torch.tensor([1, 0]), 2)) == 1.0


@pytest.mark.filterwarnings("ignore:val.agreement is left out")  # as it is of probabilities
@pytest.mark.parametrize("with_logits", [True, False])
def test_a_fit_counts_right_answers_whatever_its_loss_reads(with_logits: bool) -> None:
    torch.manual_seed(0)
    inputs = torch.randn(ROWS, 6)
    target = torch.randint(0, 2, (ROWS, 1)).float()
    end = nn.Identity if with_logits else nn.Sigmoid
    student, teacher = (nn.Sequential(nn.Linear(6, 1), end()) for _ in range(2))
    module = DistillationModule(
        student,
        teacher,
        [RegressionKDLoss()],
        task_loss=nn.BCEWithLogitsLoss() if with_logits else nn.BCELoss(),
        metrics={"right": tm.BinaryAccuracy()},
        optimizer=partial(torch.optim.SGD, lr=0.0),
    )
    trainer = Trainer(
        max_epochs=1,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    loader = DataLoader(TensorDataset(inputs, target), 2)
    trainer.fit(module, loader, loader)
    for name, network in (("val/right", student), ("val/teacher_right", teacher)):
        right = (network(inputs) > (0.0 if with_logits else 0.5)) == (target == 1)
        torch.testing.assert_close(trainer.callback_metrics[name], right.float().mean())
