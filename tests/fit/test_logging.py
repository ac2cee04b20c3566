"""What is logged, when, and under which name."""

import math

import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader, Subset

from lightning_kd.fit.part_log import PartLog
from lightning_kd.report import DistillationSummary
from tests import support


@pytest.mark.parametrize("door", ["module", "callback"])
def test_each_part_is_logged_by_name_every_n_steps_and_the_rest_at_the_end(door, tmp_path):
    logger = CSVLogger(tmp_path)
    made, callbacks = support.through(door)
    support.fit(made, callbacks=callbacks, logger=logger, max_epochs=2, log_every_n_steps=2)
    written = [row for row in support.rows(logger) if "train/loss" in row]
    assert [row["step"] for row in written] == [1, 2, 3, 5]  # 3 steps an epoch: steps 1, 3 and 5, epoch ends 2 and 5
    for row in written:
        expected = row["train/task"] + 0.9 * row["train/kd"] + 2.0 * row["train/hint"]
        assert row["train/loss"] == pytest.approx(expected, rel=1e-5)


class Watch(Callback):
    """Remembers what the progress bar and the callbacks are shown after each step."""

    def __init__(self):
        self.shown = []

    def on_train_batch_end(self, trainer, pl_module, *_):
        metrics = (trainer.progress_bar_metrics, trainer.callback_metrics)
        self.shown.append([float(of["train/loss"]) if "train/loss" in of else None for of in metrics])


@pytest.mark.parametrize("door", ["module", "callback"])
def test_progress_bar_and_callbacks_see_the_loss_of_each_log_line(door, tmp_path):
    logger, watch = CSVLogger(tmp_path), Watch()
    made, callbacks = support.through(door)
    support.fit(made, callbacks=[*callbacks, watch], logger=logger, max_epochs=1, log_every_n_steps=2)
    loss = next(row["train/loss"] for row in support.rows(logger) if row["step"] == 1)
    assert watch.shown[0] == [None, None]
    assert watch.shown[1] == [pytest.approx(loss), pytest.approx(loss)]


@pytest.mark.parametrize("door", ["module", "callback"])
def test_teacher_accuracy_is_logged_once_and_agreement_at_every_validation(door, tmp_path):
    logger = CSVLogger(tmp_path)
    made, callbacks = support.through(door)
    support.fit(made, callbacks=callbacks, logger=logger, max_epochs=3, num_sanity_val_steps=2)
    written = support.rows(logger)
    x, y = support.data().tensors
    with torch.no_grad():
        expected = (support.teacher().eval()(x).argmax(1) == y).float().mean()
    logged = [row["val/teacher_accuracy"] for row in written if "val/teacher_accuracy" in row]
    assert logged == [pytest.approx(expected)]
    assert sum("val/agreement" in row for row in written) == 3


@pytest.mark.parametrize("door", ["module", "callback"])
def test_teacher_accuracy_is_logged_anew_of_loaders_that_are_made_anew(door, tmp_path):
    class Grows(LightningDataModule):
        def train_dataloader(self):
            return DataLoader(support.data(), batch_size=8)

        def val_dataloader(self):
            rows = 8 + 8 * self.trainer.current_epoch
            asked.append(rows)
            return DataLoader(Subset(support.data(), range(rows)), batch_size=8)

    logger, asked = CSVLogger(tmp_path), []
    made, callbacks = support.through(door)
    trainer = support.trainer(
        callbacks=callbacks, logger=logger, max_epochs=2, num_sanity_val_steps=0, reload_dataloaders_every_n_epochs=1
    )
    trainer.fit(made, datamodule=Grows())
    x, y = support.data().tensors
    with torch.no_grad():
        right = (support.teacher().eval()(x).argmax(1) == y).float()
    logged = [row["val/teacher_accuracy"] for row in support.rows(logger) if "val/teacher_accuracy" in row]
    assert logged == [pytest.approx(right[:8].mean()), pytest.approx(right[:16].mean())]
    assert right[:8].mean() != right[:16].mean()
    assert asked[-2:] == [8, 16]


def test_accuracy_and_agreement_are_what_they_say():
    module = support.module()
    trainer = support.fit(module, max_epochs=1)
    x, y = support.data().tensors
    with torch.no_grad():
        mine, its = module.student.eval()(x).argmax(1), module.teacher(x).argmax(1)
    assert trainer.callback_metrics["val/accuracy"] == pytest.approx((mine == y).float().mean())
    assert trainer.callback_metrics["val/agreement"] == pytest.approx((mine == its).float().mean())


def test_barebones_logs_nothing_and_trains():
    module = support.module()
    before = support.snapshot(module.student)
    options = dict.fromkeys(("enable_checkpointing", "enable_progress_bar", "enable_model_summary"))
    support.fit(module, barebones=True, logger=None, log_every_n_steps=None, num_sanity_val_steps=None, **options)
    assert not torch.equal(module.student.head.weight, before["head.weight"])


def test_the_means_are_over_the_steps_since_the_last_flush():
    log = PartLog()
    for step, value in enumerate((1.0, 3.0)):
        log.add(torch.tensor(value), {"kd": torch.tensor(2 * value)}, step)
    assert log.flush() == {"loss": 2.0, "kd": 4.0}
    assert log.flush() == {}
    log.add(torch.tensor(5.0), {"kd": torch.tensor(1.0)}, 2)
    assert log.flush() == {"loss": 5.0, "kd": 1.0}
    assert log.epoch_means == {"loss": 3.0, "kd": 3.0}


def test_on_an_accelerator_the_first_step_that_is_not_finite_is_remembered(monkeypatch):
    log = PartLog()
    monkeypatch.setattr(PartLog, "_waits", lambda self, value: True)
    for step, value in enumerate((1.0, math.inf, math.nan, 1.0)):
        log.add(torch.tensor(value), {"task": torch.tensor(1.0), "kd": torch.tensor(value)}, step)
    with pytest.raises(FloatingPointError, match="at step 1: 'kd' is"):
        log.flush()


@pytest.mark.parametrize("door", ["module", "callback"])
def test_the_summary_tells_accuracies_sizes_and_shares(door, capsys):
    made, callbacks = support.through(door)
    support.fit(made, callbacks=[*callbacks, DistillationSummary()])
    table = capsys.readouterr().out
    lines = {line.split()[0]: line.split()[1:] for line in table.splitlines() if line.strip()}
    assert lines["parameters"][:2] == ["612", "232"]
    assert lines["agreement"][0].replace(".", "").isdigit()
    assert [lines[part][0] for part in ("task", "kd", "hint")] == ["1", "0.9", "2"]
    shares = [float(lines[part][2]) for part in ("task", "kd", "hint")]
    assert sum(shares) == pytest.approx(100, abs=0.2)
