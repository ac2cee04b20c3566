"""A run that goes on from any checkpoint, wherever in the loops it was written, is the run that was not interrupted."""

import shutil

import pytest
from lightning.pytorch.callbacks import Checkpoint

from tests.support.scenarios import SCENARIOS, curve, differences, fit, outcome

DOORS = ["module", "callback"]


class SaveEverywhere(Checkpoint):
    """Writes a checkpoint after every batch, validation and epoch, and keeps what was logged by then."""

    def __init__(self, folder):
        self.folder, self.number = folder, 0

    def save(self, trainer, where):
        if not trainer.sanity_checking:
            self.number += 1
            path = self.folder / f"{self.number:02d} {where}.ckpt"
            trainer.save_checkpoint(path)
            shutil.copy(self.folder / "lines", path.with_suffix(".lines"))

    def on_train_batch_end(self, trainer, *_):
        self.save(trainer, "batch")

    def on_validation_end(self, trainer, *_):
        self.save(trainer, "validation")

    def on_train_epoch_end(self, trainer, *_):
        self.save(trainer, "epoch")


def run(name, door, folder, checkpoint=None, callbacks=(), **options):
    """Fit, from a checkpoint if there is one; returns all it has come to, and the curve."""
    folder.mkdir()
    (folder / "lines").touch()
    if checkpoint is not None:
        shutil.copy(checkpoint.with_suffix(".lines"), folder / "lines")
        options |= {"ckpt_path": checkpoint, "seed": 99}
    trainer, _ = fit(SCENARIOS[name], door, folder / "lines", callbacks=callbacks, **options)
    return outcome(trainer, folder / "outcome.ckpt"), curve(folder / "lines")


QUICK = [("kd and hint", door) for door in [*DOORS, "several"]]
ABOUT_THE_LOOPS = [
    "accumulated",
    "curriculum",
    "ended by steps",
    "never validated",
    "plain loader with workers",
    "plain loader",
    "plateau",
    "validated within epochs",
]
SLOW = [pytest.param(name, door, marks=pytest.mark.slow) for name in ABOUT_THE_LOOPS for door in DOORS]
SLOW += [pytest.param(name, "several", marks=pytest.mark.slow) for name in ("accumulated", "ended by steps", "banks")]


@pytest.mark.parametrize(("name", "door"), [*QUICK, *SLOW])
def test_a_run_that_goes_on_from_any_checkpoint_is_the_uninterrupted_one(name, door, tmp_path):
    saver = SaveEverywhere(tmp_path / "saved")
    whole = run(name, door, saver.folder, callbacks=[saver])
    checkpoints = sorted(saver.folder.glob("[0-9]*.ckpt"))
    assert len(checkpoints) > 10
    assert not differences(run(name, door, tmp_path / "not saved", enable_checkpointing=False), whole)
    for checkpoint in checkpoints[: -2 if name == "ended by steps" else -1]:  # but those after which nothing is left
        resumed = run(name, door, tmp_path / checkpoint.stem, checkpoint, enable_checkpointing=False)
        assert not differences(resumed, whole), checkpoint.name
