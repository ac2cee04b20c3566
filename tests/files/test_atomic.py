"""A file is written through links, keeps its mode, and replaces nothing that is no file."""

import errno
import gc
import os
import resource
import signal
import stat
from pathlib import Path

import pytest
import torch
from torch import nn

from lightning_kd import export_student
from lightning_kd.files.atomic import atomic_write
from lightning_kd.files.checkpoint_io import AtomicCheckpointIO
from tests import support
from tests.support import processes

CONTENT = {"weight": torch.arange(3.0)}


def by_hand(path):
    with atomic_write(path) as file:
        file.write(b"new")


def exported(path):
    export_student(support.student(), path)


def checkpoint(path):
    AtomicCheckpointIO().save_checkpoint(CONTENT, path)


def large_checkpoint(path):
    AtomicCheckpointIO().save_checkpoint({"weight": torch.zeros(4000)}, path)


WRITERS = [by_hand, exported, checkpoint]


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("kind", ["relative", "absolute", "chain", "dangling"])
def test_a_link_to_another_folder_stays_and_its_file_is_written(write, kind, tmp_path):
    store = tmp_path / "store"
    store.mkdir()
    real, link = store / "real.pt", tmp_path / "link.pt"
    if kind != "dangling":
        real.write_bytes(b"old")
    if kind == "chain":
        (store / "between.pt").symlink_to("real.pt")
        link.symlink_to("store/between.pt")
    else:
        link.symlink_to(real if kind == "absolute" else "store/real.pt")
    write(link)
    assert link.is_symlink()
    assert not real.is_symlink()
    assert real.read_bytes() not in (b"", b"old")
    assert {path.name for path in tmp_path.rglob("*")} <= {"store", "real.pt", "between.pt", "link.pt"}


@pytest.mark.parametrize("write", [by_hand, exported])
def test_a_link_within_a_folder_is_written_through(write, tmp_path):
    (tmp_path / "real.pt").write_bytes(b"old")
    (tmp_path / "link.pt").symlink_to("real.pt")
    write(tmp_path / "link.pt")
    assert (tmp_path / "link.pt").is_symlink()
    assert (tmp_path / "real.pt").read_bytes() != b"old"


def test_the_name_last_is_given_anew_and_the_checkpoint_that_it_named_stays(tmp_path):
    """Lightning's save_last="link" makes such links; to write through one would destroy the best checkpoint."""
    (tmp_path / "best.ckpt").write_bytes(b"old")
    (tmp_path / "last.ckpt").symlink_to("best.ckpt")
    checkpoint(tmp_path / "last.ckpt")
    assert (tmp_path / "best.ckpt").read_bytes() == b"old"
    assert not (tmp_path / "last.ckpt").is_symlink()


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664, 0o444])
def test_the_mode_is_kept(write, mode, tmp_path):
    path = tmp_path / "a.pt"
    path.write_bytes(b"old")
    path.chmod(mode)
    write(path)
    assert oct(stat.S_IMODE(path.stat().st_mode)) == oct(mode)


def test_a_new_file_has_the_mode_of_any_new_file(tmp_path):
    (tmp_path / "other").touch()
    by_hand(tmp_path / "a")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_a_private_file_is_private_while_it_is_written(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"old")
    path.chmod(0o600)
    with atomic_write(path):
        assert stat.S_IMODE((tmp_path / ".a.part").stat().st_mode) == 0o600


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a file away")
def test_the_owner_is_kept(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"old")
    os.chown(path, 1234, 1234)
    by_hand(path)
    assert (path.stat().st_uid, path.stat().st_gid) == (1234, 1234)


@pytest.mark.parametrize("write", WRITERS)
def test_other_names_of_a_file_keep_their_content_which_is_told(write, tmp_path):
    path, other = tmp_path / "a.pt", tmp_path / "other.pt"
    path.write_bytes(b"old")
    other.hardlink_to(path)
    with pytest.warns(UserWarning, match="one of 2 names of the same file"):
        write(path)
    assert other.read_bytes() == b"old"
    assert path.read_bytes() != b"old"


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("kind", ["pipe", "folder", "device", "link to a device"])
def test_what_is_no_file_is_refused_and_stays(write, kind, tmp_path):
    path = tmp_path / "a.pt"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "device":
        try:
            os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 3))
        except PermissionError:
            pytest.skip("this user may make no device")
    else:
        path.symlink_to("/dev/null")
    before = path.lstat()
    with pytest.raises(ValueError, match=rf"a.pt' is a {kind.rpartition(' ')[2]}.*not a file"):
        write(path)
    assert path.lstat() == before
    assert [file.name for file in tmp_path.iterdir()] == ["a.pt"]


def test_a_hidden_file_that_is_a_link_is_not_written_through(tmp_path):
    (tmp_path / "victim").write_bytes(b"mine")
    (tmp_path / ".a.part").symlink_to("victim")
    by_hand(tmp_path / "a")
    assert (tmp_path / "victim").read_bytes() == b"mine"


@pytest.mark.parametrize("write", WRITERS)
def test_a_folder_that_is_a_file_is_told(write, tmp_path):
    (tmp_path / "folder").write_bytes(b"mine")
    with pytest.raises(OSError, match="Cannot write the file: a part of the path is a file") as caught:
        write(tmp_path / "folder" / "a.pt")
    assert str(tmp_path / "folder" / "a.pt") in str(caught.value)


@pytest.mark.parametrize("write", WRITERS)
def test_links_in_a_circle_are_told(write, tmp_path):
    (tmp_path / "a.pt").symlink_to("b.pt")
    (tmp_path / "b.pt").symlink_to("a.pt")
    if write is checkpoint:  # a name within the folder, which is given anew
        return
    with pytest.raises(OSError, match="the links lead in a circle"):
        write(tmp_path / "a.pt")


@pytest.mark.parametrize("write", WRITERS)
def test_a_folder_without_permission_is_told(write, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)  # root may write anywhere
    with pytest.raises(PermissionError, match="Cannot write the file: the folder is not writable"):
        write(tmp_path / "a.pt")


@pytest.mark.parametrize("suffix", ["pt", "safetensors", "ckpt"])
def test_a_full_disk_is_told_and_the_former_file_stays(suffix, tmp_path):
    path = Path(tmp_path / f"a.{suffix}")
    path.write_bytes(b"old")

    def work():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        write = large_checkpoint if suffix == "ckpt" else exported
        with pytest.raises(OSError, match=rf"Cannot write the file: the file would be larger.*a.{suffix}"):
            write(path)
        os._exit(7)

    codes = processes.forked("a full disk", [work], limit=60)
    assert codes == [7]
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", ["pt2", "onnx"])
def test_a_process_outlives_an_export_onto_a_full_disk(suffix, tmp_path):
    """The writers of torch end the process if they are collected unfinished."""

    def work():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
        with pytest.raises(OSError, match="Cannot write the file: the file would be larger"):
            export_student(nn.Linear(4, 3), tmp_path / f"a.{suffix}", example=torch.zeros(2, 4))
        gc.collect()
        os._exit(7)

    assert processes.forked("a full disk", [work], limit=120) == [7]
    assert not list(tmp_path.iterdir())
