"""A store at a URL: its files are copied when they are first read, whole and once."""

import threading

import fsspec
import pytest
import torch

from lightning_kd import cache
from lightning_kd.losses import KDLoss
from lightning_kd.teachers import CachedTeacher
from tests import support
from tests.cache.test_store_files import answer, live

URL = "memory://answers"


@pytest.fixture
def copied(tmp_path, monkeypatch):
    """Write a store, put it into fsspec's memory, and count which files are opened there."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    folder = cache.write(
        support.teacher(), support.data(), tmp_path / "store", losses=[KDLoss()], shard_rows=8, dtype="float32"
    )
    system = fsspec.filesystem("memory")
    system.put(str(folder), "/answers", recursive=True)
    opened = []
    true = fsspec.open
    monkeypatch.setattr(fsspec, "open", lambda url, *rest: opened.append(url.rpartition("/")[2]) or true(url, *rest))
    yield opened
    system.rm("/answers", recursive=True)


def test_files_are_copied_when_they_are_first_read_and_once(copied):
    teacher = CachedTeacher(URL)
    assert torch.allclose(answer(teacher, slice(8, 16)), live(slice(8, 16)), rtol=0, atol=1e-6)
    assert copied == ["manifest.json", "rows.safetensors", "shard-00001.safetensors"]
    assert torch.allclose(answer(CachedTeacher(URL)), live(), rtol=0, atol=1e-6)
    assert sorted(copied[3:]) == ["manifest.json", "shard-00000.safetensors", "shard-00002.safetensors"]
    assert cache.verify(URL) == 24


def test_several_readers_copy_a_file_once(copied):
    teachers = [CachedTeacher(URL) for _ in range(4)]
    copied.clear()
    found = [None] * 4

    def read(i):
        found[i] = answer(teachers[i], slice(0, 8))

    threads = [threading.Thread(target=read, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert copied == ["shard-00000.safetensors"]
    assert all(torch.equal(one, found[0]) for one in found)


def test_a_store_that_is_not_there_or_damaged_is_told(copied):
    with pytest.raises(FileNotFoundError, match="no finished store of a teacher's answers at 'memory://nothing'"):
        CachedTeacher("memory://nothing")
    system = fsspec.filesystem("memory")
    data = bytearray(system.cat("/answers/shard-00000.safetensors"))
    data[-1] ^= 1
    system.pipe("/answers/shard-00000.safetensors", bytes(data))
    with pytest.raises(ValueError, match="is damaged: its checksum"):
        answer(CachedTeacher(URL))


def test_the_stores_of_other_splits_are_found_beside(copied):
    fsspec.filesystem("memory").cp("/answers", "/answers/val", recursive=True)
    teacher = CachedTeacher(URL)
    teacher.begin_split("val")
    assert teacher.ready
    assert torch.allclose(answer(teacher), live(), rtol=0, atol=1e-6)
