"""A checkpoint is on the disk as a whole or not at all, and half a file is told by its name."""

import os
import pickle
import shutil
import tempfile
import zipfile
from pathlib import Path

import pytest
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint, OnExceptionCheckpoint
from lightning.pytorch.plugins.io import AsyncCheckpointIO

from lightning_kd.files.checkpoint_io import AtomicCheckpointIO
from lightning_kd.teachers import from_checkpoint
from tests import support

DOORS = ["module", "callback"]
CONTENT = {"weight": torch.arange(4000.0)}


def killed_while_saving(path, left):
    """Save another content, and be killed after so many bytes; 0 is between writing and renaming."""
    save, sync = torch.save, os.fsync

    def work():
        torch.save = lambda content, file: save(content, support.Dying(file, left))
        if not left:
            torch.save, os.fsync = save, lambda handle: (sync(handle), support.kill())
        AtomicCheckpointIO().save_checkpoint({"weight": torch.zeros(4000)}, path)

    support.killed(work)


@pytest.mark.parametrize("left", [1, 700, 9000, 16000, 0])
def test_a_process_killed_while_it_writes_leaves_the_former_checkpoint(left, tmp_path):
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint(CONTENT, path)
    killed_while_saving(path, left)
    assert torch.equal(AtomicCheckpointIO().load_checkpoint(path)["weight"], CONTENT["weight"])
    assert {file.name for file in tmp_path.iterdir()} == {"last.ckpt", ".last.ckpt.part"}
    AtomicCheckpointIO().save_checkpoint(CONTENT, path)  # takes away what was left
    assert {file.name for file in tmp_path.iterdir()} == {"last.ckpt"}


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("left", [1000, 0])
def test_last_is_the_last_whole_checkpoint(door, left, tmp_path):
    made, callbacks = support.through(door)
    saver = ModelCheckpoint(tmp_path, save_last=True, save_top_k=0)
    support.fit(made, callbacks=[*callbacks, saver], enable_checkpointing=True, max_epochs=1)
    for name in ("last-v1.ckpt", "last.ckpt"):  # as the first checkpoint of another run, and in place of the first one
        killed_while_saving(tmp_path / name, left)
    made, callbacks = support.through(door)
    options = {"callbacks": [*callbacks, ModelCheckpoint(tmp_path, save_last=True, save_top_k=0)], "max_epochs": 1}
    trainer = support.fit(made, ckpt_path="last", enable_checkpointing=True, **options)
    assert trainer.ckpt_path == str(tmp_path / "last.ckpt")
    assert trainer.global_step == 3


def test_no_search_of_lightning_finds_the_half_written_file(tmp_path):
    killed_while_saving(tmp_path / "hpc_ckpt_3.ckpt", 1000)
    assert len(list(tmp_path.iterdir())) == 1
    assert support.trainer(default_root_dir=tmp_path)._checkpoint_connector._hpc_resume_path is None


def test_moving_from_another_disk_is_why(tmp_path, monkeypatch):
    """Lightning's own way, with the folder for temporary files on another disk: half a file has the final name."""

    def rename(source, target):
        raise OSError  # what the system answers then

    def copy(source, target, **_):
        data = Path(source).read_bytes()
        with open(target, "wb") as file:
            support.Dying(file, len(data) // 2).write(data)

    def work():
        shutil.copyfile = copy
        TorchCheckpointIO().save_checkpoint(CONTENT, tmp_path / "last.ckpt")

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(os, "rename", rename)
    support.killed(work)
    assert (tmp_path / "last.ckpt").stat().st_size > 1000
    assert not zipfile.is_zipfile(tmp_path / "last.ckpt")


def test_a_failure_to_write_leaves_nothing(tmp_path):
    # what pickle documents is PicklingError; before Python 3.14, a local function raised AttributeError
    with pytest.raises((AttributeError, pickle.PicklingError), match="pickle"):
        AtomicCheckpointIO().save_checkpoint({"made": lambda: 1}, tmp_path / "deeper" / "last.ckpt")
    assert list((tmp_path / "deeper").iterdir()) == []


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("length", [0, 1, 1000, -1])
def test_half_a_checkpoint_given_by_hand_is_told_by_its_name(door, length, tmp_path):
    path = tmp_path / "half.ckpt"
    made, callbacks = support.through(door)
    support.fit(made, callbacks=callbacks, max_epochs=1).save_checkpoint(path)
    os.truncate(path, length if length >= 0 else path.stat().st_size - 1)
    made, callbacks = support.through(door)
    with pytest.raises(ValueError, match=r"half.ckpt' \(\d+ bytes\) cannot be read to its end"):
        support.fit(made, callbacks=callbacks, ckpt_path=path)


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_half_a_teacher_is_told_by_its_name(suffix, tmp_path):
    path = tmp_path / f"teacher.{suffix}"
    module = support.module()
    module.export(path)
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(ValueError, match=rf"teacher.{suffix}' \(\d+ bytes\) cannot be read to its end"):
        from_checkpoint(support.student(), path)


class OwnIO(TorchCheckpointIO):
    """A user's own, which counts."""

    def __init__(self):
        self.saved = self.torn_down = 0

    def save_checkpoint(self, *args, **kwargs):
        self.saved += 1
        super().save_checkpoint(*args, **kwargs)

    def teardown(self):
        self.torn_down += 1


class Watch(Callback):
    """Remembers who writes checkpoints in a run, and breaks it off on demand."""

    def __init__(self, breaks=False):
        self.breaks, self.seen = breaks, []

    def on_train_batch_end(self, trainer, *_):
        self.seen.append(_innermost(trainer.strategy.checkpoint_io))
        if self.breaks:
            raise RuntimeError("broken off")


def _innermost(io):
    while isinstance(io, AsyncCheckpointIO):
        io = io.checkpoint_io
    return io


PLUGINS = {
    "none": list,
    "plain": lambda: [TorchCheckpointIO()],
    "in threads": lambda: [AsyncCheckpointIO(TorchCheckpointIO())],
    "in threads of threads": lambda: [AsyncCheckpointIO(AsyncCheckpointIO(TorchCheckpointIO()))],
    "own": lambda: [OwnIO()],
    "own in threads": lambda: [AsyncCheckpointIO(OwnIO())],
}


@pytest.mark.parametrize("plugins", PLUGINS)
@pytest.mark.parametrize("ends", ["finished", "broken off", "refused"])
@pytest.mark.parametrize("door", DOORS)
def test_a_trainer_writes_its_checkpoints_as_before_when_the_run_is_over(door, ends, plugins, tmp_path):
    given = PLUGINS[plugins]()
    watch = Watch(breaks=ends == "broken off")
    guide = support.teacher(classes=7 if ends == "refused" else support.CLASSES)
    made, callbacks = support.through(door, guide=guide)
    trainer = support.trainer(callbacks=[*callbacks, watch], plugins=given, max_epochs=1, default_root_dir=tmp_path)
    before = trainer.strategy.checkpoint_io
    inner, attributes = _innermost(before), set(vars(before))
    for _ in range(2):  # two fits of one Trainer
        if ends == "finished":
            trainer.fit_loop.epoch_progress.reset()
            trainer.fit(made, support.loader(), support.loader())
        else:
            with pytest.raises((RuntimeError, ValueError)):
                trainer.fit(made, support.loader(), support.loader())
        assert trainer.strategy.checkpoint_io is before
        assert _innermost(before) is inner
        assert vars(before).keys() == attributes
    assert all(type(io) is (OwnIO if "own" in plugins else AtomicCheckpointIO) for io in watch.seen)
    assert watch.seen or ends == "refused"
    if plugins == "own":
        assert inner.torn_down >= 2


@pytest.mark.filterwarnings("ignore:.*ckpt_path=:UserWarning")  # by Lightning's own callback
@pytest.mark.parametrize("plugins", ["none", "in threads"])
@pytest.mark.parametrize("door", DOORS)
def test_the_checkpoint_of_an_exception_is_written_whole_too(door, plugins, tmp_path, monkeypatch):
    written = []
    save = AtomicCheckpointIO.save_checkpoint

    def noted(self, checkpoint, path, storage_options=None):
        written.append(path)
        save(self, checkpoint, path, storage_options)

    monkeypatch.setattr(AtomicCheckpointIO, "save_checkpoint", noted)
    made, callbacks = support.through(door)
    saver = OnExceptionCheckpoint(tmp_path)
    options = {"plugins": PLUGINS[plugins](), "enable_checkpointing": True, "default_root_dir": tmp_path}
    with pytest.raises(RuntimeError, match="broken off"):
        support.fit(made, callbacks=[*callbacks, Watch(breaks=True), saver], **options)
    assert [os.path.basename(path) for path in written] == ["on_exception.ckpt"]
    assert torch.load(tmp_path / "on_exception.ckpt", weights_only=True)["state_dict"]
