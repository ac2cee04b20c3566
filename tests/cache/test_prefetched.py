"""Workers read the answers of the store with the samples, which stay as they were."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, Subset

from lightning_kd import cache
from lightning_kd.data import Indexed, Replayed
from lightning_kd.data.indexed import targets_of
from lightning_kd.losses import HintLoss, KDLoss
from lightning_kd.teachers import CachedTeacher
from tests import support


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def written(folder, dataset=None, **options):
    data = support.data() if dataset is None else dataset
    return cache.write(support.teacher(), data, folder, losses=[KDLoss()], shard_rows=8, dtype="float32", **options)


def copies(home):
    return sorted(path.name for path in home.rglob("shard-*.safetensors"))


class Stream(IterableDataset):
    def __iter__(self):
        return iter(support.data())


def test_workers_copy_the_shards_of_the_samples_that_they_read(tmp_path, home):
    data = cache.Prefetched(support.data(), f"file://{written(tmp_path / 'store')}")
    assert copies(home) == []
    options = {"num_workers": 1, "multiprocessing_context": "forkserver"}
    loader = DataLoader(Subset(data, range(8, 16)), batch_size=4, **options)
    assert torch.equal(torch.cat([x for x, _ in loader]), support.data().tensors[0][8:16])
    assert copies(home) == ["shard-00001.safetensors"]


@pytest.mark.filterwarnings("ignore:You defined a `validation_step`")
@pytest.mark.parametrize("wrap", [lambda data: data, Indexed], ids=["plain", "indexed"])
def test_a_fit_is_the_same_bit_for_bit(wrap, tmp_path):
    losses = [KDLoss(), HintLoss("features", "features")]
    cache.write(support.teacher(), support.data(), tmp_path / "store", losses=losses)
    found = []
    for data in (support.data(), cache.Prefetched(support.data(), tmp_path / "store")):
        module = support.module(teacher=CachedTeacher(tmp_path / "store"), losses=copy.deepcopy(losses))
        torch.manual_seed(0)
        support.trainer().fit(module, DataLoader(wrap(data), batch_size=8, shuffle=True))
        found.append(torch.cat([one.flatten() for one in module.student.parameters()]))
    assert torch.equal(*found)


def test_it_reads_one_sample_a_batch_of_them_and_rows_from_the_end(tmp_path, home):
    plain = support.data()
    data = cache.Prefetched(plain, f"file://{written(tmp_path / 'store')}")
    assert len(data) == 24
    assert torch.equal(targets_of(data), plain.tensors[1])
    assert torch.equal(data[-1][0], plain[23][0])
    assert copies(home) == ["shard-00002.safetensors"]
    assert [int(y) for _, y in data.__getitems__([0, 9])] == plain.tensors[1][[0, 9]].tolist()
    assert len(copies(home)) == 3


def test_all_views_of_a_sample_are_read(tmp_path, home):
    views = Replayed(support.data(), 2)
    data = cache.Prefetched(views, f"file://{written(tmp_path / 'store', views)}")
    assert len(data.store) == 48
    assert len(data) == 24
    assert data[4] is not None
    assert copies(home) == ["shard-00001.safetensors"]


def test_rows_of_texts_are_read(tmp_path, monkeypatch):
    texts = [{"input_ids": torch.arange(1, 4 + i), "attention_mask": torch.ones(3 + i)} for i in range(4)]

    class Says(nn.Module):
        def forward(self, input_ids, attention_mask=None):
            return nn.functional.one_hot(input_ids, 8).float() - 3.0

    def padded(samples):
        return {
            name: nn.utils.rnn.pad_sequence([one[name] for one in samples], batch_first=True) for name in samples[0]
        }

    cache.write(Says(), texts, tmp_path, losses=[], collate_fn=padded, batch_size=2, top_k=2)
    data, read = cache.Prefetched(texts, tmp_path), []
    true = data.store.read
    monkeypatch.setattr(data.store, "read", lambda name, rows: read.append((name, rows.tolist())) or true(name, rows))
    assert len(data[3]["input_ids"]) == 6
    assert sorted(read) == [("logits#ids", [3]), ("logits#log_probs", [3])]


def test_what_does_not_fit_is_told(tmp_path):
    folder = written(tmp_path / "store")
    with pytest.raises(ValueError, match=r"has 10 samples, but .* on 24; give the data set of which"):
        cache.Prefetched(Subset(support.data(), range(10)), folder)
    with pytest.raises(TypeError, match="expected a data set with __getitem__"):
        cache.Prefetched(Stream(), folder)
    with pytest.raises(FileNotFoundError, match="no store of a teacher"):
        cache.Prefetched(support.data(), tmp_path / "nowhere")
    data = cache.Prefetched(support.data(), folder)
    shard = folder / "shard-00001.safetensors"
    shard.write_bytes(shard.read_bytes()[:-8])
    with pytest.raises(ValueError, match="shard-00001"):
        data[9]
