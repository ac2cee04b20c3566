"""A store that was changed, cut or half written is refused in words, before a wrong answer is read."""

import json
import os
import pickle

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from lightning_kd import cache
from lightning_kd.capture.call import Call
from lightning_kd.files.store import verified
from lightning_kd.losses import KDLoss
from lightning_kd.teachers import CachedTeacher
from tests import support


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))


@pytest.fixture
def folder(tmp_path):
    return cache.write(
        support.teacher(), support.data(), tmp_path / "store", losses=[KDLoss()], shard_rows=8, dtype="float32"
    )


def answer(teacher, rows=slice(None)):
    return teacher.answer(None, Call(args=(support.data().tensors[0][rows],))).output


def live(rows=slice(None)):
    with torch.no_grad():
        return support.teacher().eval()(support.data().tensors[0][rows])


def shards(folder):
    return sorted(folder.glob("shard-*"))


def test_rows_of_several_shards_come_in_the_order_of_the_samples(folder):
    rows = torch.tensor([17, 3, 3, 20, 0])
    assert len(shards(folder)) == 3
    assert torch.allclose(answer(CachedTeacher(folder), rows), live(rows), rtol=0, atol=1e-6)


def test_more_shards_than_are_held_open_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr("lightning_kd.files.store.reader._OPEN", 2)
    folder = cache.write(support.teacher(), support.data(), tmp_path, losses=[KDLoss()], shard_rows=1, dtype="float32")
    teacher = CachedTeacher(folder)
    assert torch.allclose(answer(teacher), live(), rtol=0, atol=1e-6)
    assert len(teacher._stores["train"]._shards) == 2


def test_a_teacher_that_was_sent_to_another_process_reads_the_store_there(folder):
    teacher = CachedTeacher(folder)
    answer(teacher)
    assert torch.equal(answer(pickle.loads(pickle.dumps(teacher))), answer(teacher))


@pytest.mark.parametrize("at", [20, -1])
def test_a_flipped_byte_is_found_when_the_shard_is_first_read(folder, at):
    path = shards(folder)[1]
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
    teacher = CachedTeacher(folder)
    answer(teacher, slice(0, 8))
    with pytest.raises(ValueError, match=f"{path.name}.*is damaged: its checksum"):
        answer(teacher)
    with pytest.raises(ValueError, match=f"{path.name}.*is damaged: its checksum"):
        cache.verify(folder)


@pytest.mark.parametrize(("change", "how"), [(-1, "cut"), (1, "longer than it was")])
def test_a_file_of_another_size_is_found_on_opening(folder, change, how):
    for path in (shards(folder)[2], folder / "rows.safetensors"):
        before = path.read_bytes()
        path.write_bytes(before[:change] if change < 0 else before + b"0")
        with pytest.raises(ValueError, match=f"{path.name}.*is {how}"):
            CachedTeacher(folder)
        path.write_bytes(before)
    shards(folder)[0].unlink()
    with pytest.raises(FileNotFoundError, match="is not there"):
        CachedTeacher(folder)


def test_a_file_that_changes_during_the_run_is_an_error_and_no_end_of_the_process(folder):
    teacher = CachedTeacher(folder)
    answer(teacher)
    os.truncate(shards(folder)[0], 8)
    with pytest.raises(ValueError, match="has changed during the run"):
        answer(teacher)


def test_the_manifest_is_refused_if_it_was_changed_or_is_of_another_version(folder):
    path = folder / "manifest.json"
    before = path.read_text()
    path.write_text(before.replace('"views": 1', '"views": 2'))
    with pytest.raises(ValueError, match="was changed after it was written"):
        CachedTeacher(folder)
    path.write_text(before[:-20])
    with pytest.raises(ValueError, match="is damaged"):
        CachedTeacher(folder)
    from lightning_kd.files.store.manifest import write_plain

    plain = json.loads(before)
    del plain["checksum"]
    write_plain(path, plain | {"schema": 99})
    with pytest.raises(ValueError, match="has the schema 99"):
        CachedTeacher(folder)


def test_a_folder_without_a_store_is_refused_with_the_command(tmp_path):
    with pytest.raises(FileNotFoundError, match="lightning-kd cache --config"):
        CachedTeacher(tmp_path)
    with pytest.raises(FileNotFoundError, match="is no folder"):
        CachedTeacher(tmp_path / "none")


def test_a_checksum_is_computed_once_and_again_after_a_change(folder, monkeypatch):
    counted = []
    compute = verified.checksum
    monkeypatch.setattr(verified, "checksum", lambda path: counted.append(path.name) or compute(path))
    answer(CachedTeacher(folder))
    assert sorted(counted) == ["rows.safetensors", *(path.name for path in shards(folder))]
    counted.clear()
    answer(CachedTeacher(folder))
    assert counted == []
    os.utime(shards(folder)[1], ns=(1, 1))
    answer(CachedTeacher(folder))
    assert counted == [shards(folder)[1].name]


def test_a_store_is_read_where_nothing_can_be_remembered(folder, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert torch.allclose(answer(CachedTeacher(folder)), live(), rtol=0, atol=1e-6)


def test_the_fingerprint_of_the_data_is_of_its_content_alone(tmp_path):
    def fingerprint(dataset, name, **options):
        folder = cache.write(support.teacher(), dataset, tmp_path / name, losses=[KDLoss()], **options)
        return json.loads((folder / "manifest.json").read_text())["data"]["sha256"]

    x, y = support.data().tensors
    first = fingerprint(support.data(), "a", batch_size=24)
    assert fingerprint(TensorDataset(x, y), "b", batch_size=5, shard_rows=7) == first
    assert fingerprint(TensorDataset(x.roll(1, 0), y), "c") != first
    assert fingerprint(TensorDataset(torch.nextafter(x, x + 1), y), "d") != first


def test_other_weights_have_another_fingerprint(tmp_path):
    def fingerprint(teacher, name):
        folder = cache.write(teacher, support.data(), tmp_path / name, losses=[KDLoss()])
        return json.loads((folder / "manifest.json").read_text())["teacher"]["sha256"]

    guide = support.teacher()
    first = fingerprint(guide, "a")
    assert fingerprint(support.teacher(), "b") == first
    with torch.no_grad():  # the same numbers in other places
        guide.head.weight.copy_(guide.head.weight.flip(0))
    assert fingerprint(guide, "c") != first


@pytest.mark.parametrize("suffix", [".npy", ".csv", ".named.csv"])
@pytest.mark.parametrize("holds", ["logits", "probabilities", "log_probabilities"])
def test_a_table_of_others_is_read_by_row(tmp_path, suffix, holds):
    import numpy as np

    logits = live().double()
    of = {"logits": logits, "probabilities": (logits / 2).softmax(1), "log_probabilities": (logits / 2).log_softmax(1)}
    path = tmp_path / f"table{suffix}"
    if suffix == ".npy":
        np.save(path, of[holds].numpy())
    else:
        np.savetxt(path, of[holds].numpy(), delimiter=",", header="a,b,c,d" if "named" in suffix else "", comments="")
    teacher = CachedTeacher(path, holds=holds, **({} if holds == "logits" else {"temperature": 2.0}))
    x, rows = support.data().tensors[0][4:9], torch.arange(4, 9)
    found = teacher.answer(None, Call(args=(x,), index=rows)).output
    assert torch.allclose(found.log_softmax(1), logits[4:9].log_softmax(1).float(), atol=1e-5)
    with pytest.raises(ValueError, match=r"wrap the data set in lightning_kd\.data\.Indexed"):
        teacher.answer(None, Call(args=(x,)))
    with pytest.raises(ValueError, match="has 24 rows, but the training data has 30 samples"):
        teacher.see_fit(30, {})


def test_a_table_that_is_not_what_is_said_is_refused(tmp_path):
    import numpy as np

    path, chances = tmp_path / "a.npy", live().softmax(1).numpy()
    np.save(path, chances)
    with pytest.raises(ValueError, match="adds up to 1, as probabilities do"):
        CachedTeacher(path)
    np.save(path, chances * 0.9)
    with pytest.raises(ValueError, match="does not add up to 1"):
        CachedTeacher(path, holds="probabilities")
    chances[3, 1] = float("nan")
    np.save(path, chances)
    with pytest.raises(ValueError, match=r"row 3 of .* is not finite"):
        CachedTeacher(path, holds="probabilities")
    with pytest.raises(ValueError, match="have no effect on the store"):
        CachedTeacher(tmp_path, holds="probabilities")


def test_a_network_that_answers_nothing_is_not_stored(tmp_path):
    with pytest.raises(ValueError, match="no network whose answers could be stored"):
        cache.write(CachedTeacher.__new__(CachedTeacher), support.data(), tmp_path, losses=[KDLoss()])
    with pytest.raises(ValueError, match="no rows, so there is nothing to store"):
        cache.write(nn.Linear(1, 1), TensorDataset(torch.zeros(0, 1)), tmp_path, losses=[KDLoss()])
