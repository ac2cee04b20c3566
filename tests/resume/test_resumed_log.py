"""A resumed run writes the lines that the interrupted one would have written."""

import csv

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.loggers import CSVLogger

from lightning_kd import DistillationModule
from lightning_kd.fit.part_log import PartLog
from tests import support

DOORS = ["module", "callback"]


def curve(folder):
    """What was written of losses and evaluations, by step and name."""
    path = folder / "metrics.csv"
    rows = list(csv.DictReader(path.read_text().splitlines())) if path.exists() else []
    return {(row["step"], name): row[name] for row in rows for name in row if row[name] and "/" in name}


class Save(support.SaveEveryStep):
    """Remembers, too, what was on the disk when each checkpoint was written."""

    def __init__(self, folder):
        super().__init__(folder)
        self.written = {}

    def on_train_batch_end(self, trainer, *_):
        super().on_train_batch_end(trainer)
        self.written[trainer.global_step] = curve(self.folder)


def fitted(door, folder, *callbacks, **options):
    made, more = support.through(door)
    logger = CSVLogger(folder, name="", version="")  # writes every 100 steps
    options = {"max_epochs": 2, "train": support.ResumableLoader(), "logger": logger, **options}
    return support.fit(made, callbacks=[*more, *callbacks], **options)


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("every", [2, 4])
@pytest.mark.parametrize("at", [2, 4, 5])
def test_the_curve_of_a_resumed_run_is_that_of_the_whole_run(door, every, at, tmp_path):
    save = Save(tmp_path / "whole")
    fitted(door, save.folder, save, log_every_n_steps=every)
    fitted(door, tmp_path / "rest", ckpt_path=save.folder / f"{at}.ckpt", log_every_n_steps=every)
    assert save.written[at] | curve(tmp_path / "rest") == curve(save.folder)


@pytest.mark.parametrize("accelerator", [False, True])
def test_a_restored_log_adds_up_as_if_it_had_not_been_interrupted(accelerator, tmp_path, monkeypatch):
    """In floating point (a + b) + c is not a + (b + c), so the state must not add up what was waiting."""
    monkeypatch.setattr(PartLog, "_waits", lambda self, value: accelerator)
    values = torch.rand(150, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def counted(log, steps):
        for step in steps:
            names = ("kd", "hint") if step < 100 else ("kd",)
            log.add(values[step], dict.fromkeys(names, values[step]), step)

    whole = PartLog()
    counted(whole, range(150))
    expected = whole.flush(), whole.epoch_means
    for at in (1, 63, 64, 65, 99, 100, 101):
        first, second = PartLog(), PartLog()
        counted(first, range(at))
        torch.save(first.state(), tmp_path / "log.pt")
        second.restore(torch.load(tmp_path / "log.pt", weights_only=True))
        for log in (first, second):  # taking the state has not disturbed the first one either
            counted(log, range(at, 150))
            assert (log.flush(), log.epoch_means) == expected


def test_another_number_of_processes_is_told(tmp_path):
    support.fit(support.module(), max_epochs=1, callbacks=[support.SaveEveryStep(tmp_path)])
    content = torch.load(tmp_path / "3.ckpt", weights_only=True)
    content["lightning_kd"]["processes"] *= 2
    torch.save(content, tmp_path / "two.ckpt")
    with pytest.warns(UserWarning, match=r"written by 2 process\(es\).*drawn afresh"):
        support.fit(support.module(), max_epochs=2, ckpt_path=tmp_path / "two.ckpt")


class Begun(support.Callback):
    """Remembers how a fit begins."""

    def on_train_start(self, trainer, pl_module):
        self.state, self.run = (
            torch.get_rng_state(),
            (pl_module.run.log.state()["rows"], pl_module.run.evaluation.teacher_accuracy),
        )


def test_a_new_fit_of_a_loaded_module_begins_anew(tmp_path):
    """With its own random numbers and means, and with the accuracy of its own teacher to tell."""
    support.fit(support.module(), callbacks=[support.SaveEveryStep(tmp_path)])
    begun = [Begun(), Begun()]
    for seed, callback in enumerate(begun):
        nets = {"student": support.student(), "teacher": support.teacher()}
        loaded = DistillationModule.load_from_checkpoint(tmp_path / "4.ckpt", **nets, weights_only=True)
        support.fit(loaded, seed=seed, callbacks=[callback])
        assert callback.run == ([], None)
    assert not torch.equal(begun[0].state, begun[1].state)


@pytest.mark.parametrize("door", DOORS)
def test_a_loss_that_is_not_finite_in_the_first_step_after_resuming_is_told_with_its_number(door, tmp_path):
    trainer = fitted(door, tmp_path, max_epochs=1)
    trainer.save_checkpoint(tmp_path / "one.ckpt")

    class Spoils(Callback):
        def on_train_batch_start(self, trainer, pl_module, *_):
            for parameter in pl_module.parameters():
                parameter.data.fill_(torch.nan)

    with pytest.raises(FloatingPointError, match=r"at step 3: "):
        fitted(door, tmp_path / "rest", Spoils(), ckpt_path=tmp_path / "one.ckpt")
