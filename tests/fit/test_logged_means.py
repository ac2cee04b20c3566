"""Logged means are sums over counts: over rows, or over labels, however the rows are split into batches."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_kd import DistillationModule
from lightning_kd.fit.part_log import PartLog
from lightning_kd.functional import dkd_loss, kd_loss
from lightning_kd.losses import DKDLoss, KDLoss
from tests import support


def still(losses, task_loss=None):
    """A module that does not learn, so that every batch is seen by the same weights."""
    student, teacher = (support.seeded(lambda: nn.Linear(6, 4), seed) for seed in (1, 2))
    optimizer = partial(torch.optim.SGD, lr=0.0)
    return DistillationModule(student, teacher, losses, task_loss=task_loss, optimizer=optimizer)


def epoch(made, x, y, batch_size):
    loader = DataLoader(TensorDataset(x, y), batch_size=batch_size)
    metrics = support.fit(made, train=loader, val=loader, max_epochs=1, num_sanity_val_steps=0).callback_metrics
    return {name: float(value) for name, value in metrics.items()}


def data(rows):
    generator = torch.Generator().manual_seed(3)
    x, y = torch.randn(rows, 6, generator=generator), torch.randint(0, 4, (rows,), generator=generator)
    x[-1] *= 20  # what counts too much if the last, small batch counts as a whole one
    return x, y


@pytest.mark.parametrize("batch_size", [37, 36, 10, 1])
def test_an_epoch_of_uneven_batches_is_a_mean_over_rows(batch_size):
    x, y = data(37)
    made = still([KDLoss()], nn.CrossEntropyLoss())
    found = epoch(made, x, y, batch_size)
    with torch.no_grad():
        mine, its = made.student(x), made.teacher(x)
        expected = {"train/kd": kd_loss(mine, its, temperature=4.0), "train/task": F.cross_entropy(mine, y)}
    for name, value in expected.items():
        assert found[name] == pytest.approx(value.item(), rel=1e-5)
    assert found["train/loss"] == pytest.approx(sum(expected.values()).item(), rel=1e-5)
    assert found["val/loss"] == pytest.approx(expected["train/task"].item(), rel=1e-5)


@pytest.mark.parametrize("mark", [-100, 255])
@pytest.mark.parametrize("batch_size", [37, 36, 10])
def test_a_mean_over_labels_counts_labels(batch_size, mark):
    x, y = data(37)
    y[2:30] = mark
    made = still([DKDLoss()], nn.CrossEntropyLoss(ignore_index=mark))
    found = epoch(made, x, y, batch_size)
    with torch.no_grad():
        mine, its = made.student(x), made.teacher(x)
        dkd, task = dkd_loss(mine, its, y, ignore_index=mark), F.cross_entropy(mine, y, ignore_index=mark)
    assert found["train/dkd"] == pytest.approx(dkd.item(), rel=1e-5)
    assert found["val/loss"] == pytest.approx(task.item(), rel=1e-5)
    assert found["train/task"] == pytest.approx(task.item(), rel=1e-5)


def test_class_weights_count_as_the_loss_counts_them():
    x, y = data(37)
    weights = torch.tensor([0.1, 1.0, 2.0, 5.0])
    made = still([KDLoss()], nn.CrossEntropyLoss(weight=weights))
    found = epoch(made, x, y, 10)
    with torch.no_grad():
        task = F.cross_entropy(made.student(x), y, weight=weights)
    assert found["train/task"] == pytest.approx(task.item(), rel=1e-5)


class PositionsFirst(nn.Module):
    """An LSTM on (L, B, C), as torch has it by default."""

    def __init__(self, width):
        super().__init__()
        self.lstm, self.head = nn.LSTM(6, width), nn.Linear(width, 4)

    def forward(self, x):
        return self.head(self.lstm(x)[0][-1])


@pytest.mark.parametrize("batch_size", [11, 8, 3])
def test_the_rows_of_sequences_with_positions_first_are_samples(batch_size):
    generator = torch.Generator().manual_seed(3)
    x, y = torch.randn(5, 11, 6, generator=generator), torch.arange(11) % 4
    x[:, -1] *= 20
    student, teacher = (support.seeded(lambda: PositionsFirst(8), seed) for seed in (1, 2))
    made = DistillationModule(
        student,
        teacher,
        [KDLoss()],
        task_loss=nn.CrossEntropyLoss(),
        optimizer=partial(torch.optim.SGD, lr=0.0),
    )
    batches = [(x[:, i : i + batch_size], y[i : i + batch_size]) for i in range(0, 11, batch_size)]
    metrics = support.fit(made, train=support.batches(*batches), val=support.batches(*batches), max_epochs=1)
    with torch.no_grad():
        expected = kd_loss(made.student(x), made.teacher(x), temperature=4.0).item()
    assert float(metrics.callback_metrics["train/kd"]) == pytest.approx(expected, rel=1e-5)


def test_steps_of_equal_size_give_their_plain_mean_to_the_last_bit():
    values = torch.rand(150, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    plain, rows = PartLog(), PartLog()
    for step, value in enumerate(values):
        plain.add(value, {"kd": value}, step)
        rows.add(value, {"kd": value}, step, rows=37)
    assert plain.flush() == rows.flush()
    assert plain.epoch_means == rows.epoch_means


def test_the_log_of_an_earlier_version_is_restored():
    old = {"names": ["loss"], "rows": [[2.0]], "steps": [1], "sums": [[{"loss": 4.0}, {"loss": 1}]] * 2}
    log = PartLog()
    log.restore(old)
    log.add(torch.tensor(9.0), {}, 2, rows=37)  # the epoch goes on as it began: every step counts alike
    assert log.flush() == log.epoch_means == {"loss": 5.0}
    log.start_epoch()
    log.add(torch.tensor(1.0), {}, 3, rows=3)
    log.add(torch.tensor(5.0), {}, 4, rows=1)
    assert log.epoch_means == {"loss": 2.0}


@pytest.mark.parametrize("at", [1, 2, 3])
def test_uneven_steps_go_on_from_a_checkpoint(at, tmp_path):
    steps = [(1.0, 36), (7.0, 1), (2.0, 5), (3.0, 36)]
    whole, first, second = PartLog(), PartLog(), PartLog()
    for log, part in ((whole, steps), (first, steps[:at])):
        for step, (value, rows) in enumerate(part):
            log.add(torch.tensor(value), {}, step, rows)
    torch.save(first.state(), tmp_path / "log.pt")
    second.restore(torch.load(tmp_path / "log.pt", weights_only=True))
    for step, (value, rows) in enumerate(steps[at:], at):
        second.add(torch.tensor(value), {}, step, rows)
    assert second.flush() == whole.flush() == {"loss": 13 / 4}
    expected = whole.epoch_means
    assert second.epoch_means == expected
    assert expected["loss"] == pytest.approx((36 + 7 + 10 + 108) / 78)


WEIGHTS = torch.tensor([0.1, 1.0, 2.0, 50.0])


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.2}, {"ignore_index": 2}, {"ignore_index": 255}], ids=str)
def test_the_loss_of_a_validation_counts_class_weights_however_it_is_split(options):
    x, y = data(21)
    y[3:6] = 255 if options.get("ignore_index") == 255 else y[3:6]
    y[10:12] = 2  # a batch of one with no label, or with weight
    task_loss = nn.CrossEntropyLoss(weight=WEIGHTS, **options)
    made = still([KDLoss()], task_loss)
    with torch.no_grad():
        expected = F.cross_entropy(made.student(x), y, weight=WEIGHTS, **options).item()
    for batch_size in (1, 4, 21):
        loader = DataLoader(TensorDataset(x, y), batch_size=batch_size)
        found = support.trainer().validate(made, loader, verbose=False)[0]
        assert found["val/loss"] == pytest.approx(expected, rel=1e-5)
        assert support.trainer().test(made, loader, verbose=False)[0]["test/loss"] == pytest.approx(expected, rel=1e-5)


def test_each_loader_has_its_own_mean_over_class_weights_and_each_evaluation_begins_anew():
    x, y = data(21)
    made = still([KDLoss()], nn.CrossEntropyLoss(weight=WEIGHTS))
    parts = [(x[:13], y[:13]), (x[13:], y[13:])]
    loaders = [DataLoader(TensorDataset(*part), batch_size=3) for part in parts]
    trainer = support.trainer()
    for _ in range(2):
        found = trainer.validate(made, loaders, verbose=False)
        for i, (rows, labels) in enumerate(parts):
            with torch.no_grad():
                expected = F.cross_entropy(made.student(rows), labels, weight=WEIGHTS).item()
            assert found[i][f"val/loss/dataloader_idx_{i}"] == pytest.approx(expected, rel=1e-5)


def test_class_weights_of_pixels_and_of_a_column_of_ids_count_too():
    generator = torch.Generator().manual_seed(3)
    x, y = torch.randn(7, 6, 3, 2, generator=generator), torch.randint(0, 4, (7, 3, 2), generator=generator)
    optimizer = partial(torch.optim.SGD, lr=0.0)
    loss = nn.CrossEntropyLoss(weight=WEIGHTS)
    made = DistillationModule(nn.Conv2d(6, 4, 1), nn.Conv2d(6, 4, 1), [KDLoss()], task_loss=loss, optimizer=optimizer)
    with torch.no_grad():
        expected = loss(made.student(x), y).item()
    for target in (y, y[:, None]):
        loader = DataLoader(TensorDataset(x, target), batch_size=2)
        found = support.trainer().validate(made, loader, verbose=False)[0]
        assert found["val/loss"] == pytest.approx(expected, rel=1e-5)


def test_the_loss_of_one_part_is_logged_as_that_part():
    x, y = support.data().tensors
    y[4:12] = -100  # a batch without a label, and one with half of them
    module = support.module(teacher=None, losses=None, task_loss=nn.CrossEntropyLoss())
    trainer = support.fit(module, train=DataLoader(TensorDataset(x, y), batch_size=8), max_epochs=1)
    assert trainer.callback_metrics["train/loss"] == trainer.callback_metrics["train/task"]
