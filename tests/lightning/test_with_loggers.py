"""Lightning's loggers: one curve for each part of the loss, at the steps that it is of."""

import pytest
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_kd.losses import HybridLoss, KDLoss
from tests import support

DOORS = ["module", "callback"]


def curves(logger):
    """Return (steps, values) by name out of what TensorBoard shows."""
    logger.finalize("success")
    events = EventAccumulator(logger.log_dir)
    events.Reload()
    return {
        name: ([event.step for event in events.Scalars(name)], [event.value for event in events.Scalars(name)])
        for name in events.Tags()["scalars"]
    }


@pytest.mark.parametrize("door", DOORS)
def test_tensorboard_and_csv_show_the_same_curves_at_the_steps_they_are_of(door, tmp_path):
    board, table = TensorBoardLogger(tmp_path / "board"), CSVLogger(tmp_path / "table")
    made, callbacks = support.through(door)
    support.fit(made, callbacks=callbacks, logger=[board, table], log_every_n_steps=2, max_epochs=3)
    shown, rows = curves(board), support.rows(table)
    parts = {"train/loss", "train/task", "train/kd", "train/hint"}
    evaluated = {"val/agreement", *(("val/accuracy", "val/loss") if door == "module" else ("user_val",))}
    assert parts | evaluated | {"val/teacher_accuracy"} <= shown.keys()
    for name in parts:
        assert shown[name][0] == [1, 2, 3, 5, 7, 8]  # every 2 steps, and what is left when an epoch of 3 ends
    for name in evaluated:
        assert shown[name][0] == [2, 5, 8]
    assert shown["val/teacher_accuracy"][0] == [2]
    for name in parts | evaluated:
        steps, values = zip(*((row["step"], row[name]) for row in rows if name in row), strict=True)
        assert (list(steps), list(values)) == (shown[name][0], pytest.approx(shown[name][1]))


@pytest.mark.parametrize("door", DOORS)
def test_the_parts_of_a_nested_loss_are_curves_of_their_own(door, tmp_path):
    board = TensorBoardLogger(tmp_path)
    made, callbacks = support.through(door, losses=[HybridLoss([KDLoss(), *support.default_losses()])])
    support.fit(made, callbacks=callbacks, logger=board, log_every_n_steps=3, max_epochs=1)
    names = {name for name in curves(board) if name.startswith("train/hybrid")}
    assert names == {"train/hybrid", *(f"train/hybrid/{part}" for part in ("kd", "kd_2", "hint"))}
