"""The writer visits every row once, goes on where it was killed, and refuses what has no right answer."""

import json
import logging
from collections import namedtuple
from contextlib import nullcontext
from functools import partial

import pytest
import torch
from torch import nn
from torch.utils.data import IterableDataset, TensorDataset

from lightning_kd import Batch, DistillationModule, cache
from lightning_kd.cache import writer
from lightning_kd.cache.items import Format
from lightning_kd.cache.write import writer_of
from lightning_kd.capture.call import Call
from lightning_kd.data import Replayed
from lightning_kd.functional import token_kd_loss
from lightning_kd.losses import ATLoss, HintLoss, KDLoss, RKDLoss, SparseLogits
from lightning_kd.teachers import CachedTeacher
from lightning_kd.teachers.frozen import FrozenTeacher
from tests import support


class Counting(TensorDataset):
    """Notes which rows are read."""

    def __init__(self, *tensors):
        super().__init__(*tensors)
        self.read = []

    def __getitem__(self, row):
        self.read.append(row)
        return super().__getitem__(row)

    __getitems__ = None


def data():
    return Counting(*support.data().tensors)


def write(folder, **options):
    defaults = {"losses": [KDLoss()], "dtype": "float32", "shard_rows": 5, "batch_size": 3}
    guide, rows = options.pop("teacher", support.teacher()), options.pop("dataset", support.data())
    return cache.write(guide, rows, folder, **(defaults | options))


def stored(folder, x=None):
    x = support.data().tensors[0] if x is None else x
    return CachedTeacher(folder).answer(None, Call(args=(x,))).output


def whole():
    with torch.no_grad():
        return support.teacher().eval()(support.data().tensors[0])


def test_a_writer_that_was_killed_goes_on_and_no_half_shard_is_read(tmp_path, monkeypatch):
    folder = tmp_path / "store"

    def dies():
        saved = writer.Writer._save

        def save(self, number, rows, parts):
            saved(self, number, rows, parts)
            if number == 2:
                support.kill()

        writer.Writer._save = save
        write(folder)

    support.killed(dies)
    assert len(list(folder.glob("shard-*.safetensors"))) == 3
    with pytest.raises(FileNotFoundError, match="is not finished"):
        CachedTeacher(folder)
    rows = data()
    write(folder, dataset=rows)
    assert set(rows.read) == {0, 1, 2, *range(15, 24)}  # the first batch tells the sizes
    assert torch.allclose(stored(folder), whole(), rtol=0, atol=1e-6)
    assert sorted(path.name for path in folder.iterdir() if "shard" not in path.name) == [
        "manifest.json",
        "rows.safetensors",
    ]


def test_a_writer_that_is_killed_in_the_middle_of_a_shard_leaves_none(tmp_path):
    folder = tmp_path / "store"

    def dies():
        opened = writer.atomic_write

        def half(path):
            return _HalfWritten(opened(path)) if path.name == writer.shard_name(1) else opened(path)

        writer.atomic_write = half
        write(folder)

    support.killed(dies)
    assert not (folder / writer.shard_name(1)).exists()
    write(folder)
    assert torch.allclose(stored(folder), whole(), rtol=0, atol=1e-6)


class _HalfWritten:
    def __init__(self, context):
        self.context = context

    def __enter__(self):
        return support.Dying(self.context.__enter__(), 100)

    def __exit__(self, *args):
        return self.context.__exit__(*args)


def test_several_processes_write_one_store(tmp_path):
    for rank in (1, 0):
        assert not (tmp_path / "manifest.json").exists()
        write(tmp_path, rank=rank, world_size=2)
    assert torch.allclose(stored(tmp_path), whole(), rtol=0, atol=1e-6)


def test_two_writers_of_one_part_are_refused(tmp_path):
    from filelock import FileLock

    with FileLock(tmp_path / ".rank-0.lock"), pytest.raises(ValueError, match="Another process is writing"):
        write(tmp_path)


def test_a_finished_store_is_compared_with_the_teacher(tmp_path, caplog, monkeypatch):
    write(tmp_path, losses=[KDLoss(), HintLoss("features", "features")])
    answer = FrozenTeacher.answer

    def moved(self, batch, call):
        lesson = answer(self, batch, call)
        lesson.output = lesson.output * (1 + 2**-12)  # as another version of torch may
        return lesson

    off = float(whole()[:3].abs().max() * 2**-12)
    for moves in (0.0, off):
        with caplog.at_level(logging.INFO):
            write(tmp_path, losses=[KDLoss(), HintLoss("features", "features")])
        assert f"logits by at most {moves:.2g}, layer:features by at most 0." in caplog.text
        monkeypatch.setattr(FrozenTeacher, "answer", moved)


def test_a_folder_with_another_store_is_refused_and_the_same_one_is_kept(tmp_path):
    write(tmp_path)
    rows = data()
    write(tmp_path, dataset=rows, batch_size=4)
    assert set(rows.read) == {0, 1, 2, 3, 23}  # the first batch and the last row tell whose the store is
    with pytest.raises(ValueError, match=r"holds another store already: .*dtype: 'float32', not 'float16'"):
        write(tmp_path, dtype="float16")
    with pytest.raises(ValueError, match=r"teacher\.sha256"):
        write(tmp_path, teacher=support.seeded(partial(support.ConvNet, 8), 1))
    with pytest.raises(ValueError, match=r"data\.samples: 24, not 23"):
        write(tmp_path, dataset=TensorDataset(support.data().tensors[0][:23]))
    with pytest.raises(ValueError, match=r"data\.first_row"):
        write(tmp_path, dataset=TensorDataset(support.data().tensors[0].flip(0)))


def test_every_row_is_read_once_beside_the_look_at_the_first(tmp_path):
    rows = data()
    write(tmp_path, dataset=rows, num_workers=0)
    assert sorted(rows.read[8:]) == list(range(24))


class Draws(support.ConvNet):
    def __init__(self):
        super().__init__(8, dropout=0.5)


def test_the_teacher_answers_in_eval_mode_and_is_left_as_it_was(tmp_path):
    guide = support.seeded(Draws, 7).train()
    before = {name: value.clone() for name, value in guide.state_dict().items()}
    write(tmp_path, teacher=guide, losses=[KDLoss(), HintLoss("features", "features")])
    assert torch.allclose(stored(tmp_path), whole(), rtol=0, atol=1e-6)
    assert all(torch.equal(before[name], value) for name, value in guide.state_dict().items())
    assert not any(module._forward_hooks for module in guide.modules())


class Times(nn.Module):
    """Answers with its input, times a factor."""

    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return x.flatten(1) * self.factor


@pytest.mark.parametrize(("factor", "why"), [(1e5, "does not fit torch.float16"), (float("nan"), "is not finite")])
def test_the_first_row_that_has_no_right_number_is_named(tmp_path, factor, why):
    x = torch.zeros(24, 2)
    x[17] = 1.0
    with pytest.raises(ValueError, match=f"logits: .*row (17|0) .*{why}"):
        write(tmp_path, teacher=Times(factor), dataset=TensorDataset(x), dtype="float16")
    assert not (tmp_path / "manifest.json").exists()


def test_a_disk_without_room_is_told_before_anything_is_written(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(writer.shutil, "disk_usage", lambda _: usage(0, 0, 100))
    with pytest.raises(OSError, match="has room for 100 B"):
        write(tmp_path)
    assert not list(tmp_path.glob("shard*"))


class Noisy(TensorDataset):
    def __getitem__(self, row):
        x, *rest = super().__getitem__(row)
        return (x + torch.randn_like(x), *rest)


def test_data_that_is_augmented_at_random_is_refused_with_the_remedy(tmp_path):
    noisy = Noisy(*support.data().tensors)
    with pytest.raises(ValueError, match=r"two different inputs '0'.*Replayed\(dataset, views=K\)"):
        write(tmp_path, dataset=noisy)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_teacher_that_ends_in_softmax_is_noticed_in_the_fit_or_not_stored(tmp_path, dtype):
    guide = nn.Sequential(support.teacher(), nn.Softmax(1))
    if dtype == "bfloat16":
        with pytest.raises(ValueError, match="returns probabilities, which bfloat16 rounds"):
            write(tmp_path, teacher=guide, dtype=dtype)
        return
    write(tmp_path, teacher=guide, dtype=dtype)
    with pytest.raises(ValueError, match="teacher_outputs"):
        support.fit(support.module(teacher=CachedTeacher(tmp_path), losses=[KDLoss()]))
    live, stored = (
        support.module(teacher=teacher, losses=[KDLoss()], teacher_outputs="probabilities")
        for teacher in (guide, CachedTeacher(tmp_path))
    )
    for module in (live, stored):
        support.fit(module, limit_val_batches=0)
    torch.testing.assert_close(live.student.head.weight, stored.student.head.weight, rtol=0, atol=1e-3)


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_replayed_views_are_seen_by_student_and_teacher_alike(tmp_path, workers):
    rows = Replayed(Noisy(*support.data().tensors), views=3)
    write(tmp_path, dataset=rows, losses=support.default_losses())
    assert json.loads((tmp_path / "manifest.json").read_text())["rows"] == 72
    options = {"num_workers": workers, "multiprocessing_context": "forkserver"} if workers else {}

    def weights(guide):
        module = support.module(teacher=guide)
        loader = torch.utils.data.DataLoader(rows, batch_size=8, shuffle=True, **options)
        support.fit(module, train=loader)
        return torch.cat([p.detach().flatten() for p in module.student.parameters()])

    live = weights(support.teacher())
    assert torch.allclose(live, weights(CachedTeacher(tmp_path)), rtol=0, atol=1e-6)
    module = support.module(teacher=CachedTeacher(tmp_path))
    loader = torch.utils.data.DataLoader(Noisy(*support.data().tensors), batch_size=8)
    with pytest.raises(ValueError, match="The teacher has not seen them"):
        support.fit(module, train=loader)


def test_streams_and_losses_without_layers_are_refused(tmp_path):
    class Stream(IterableDataset):
        def __iter__(self):
            yield torch.zeros(1)

    with pytest.raises(TypeError, match="has no rows by number"):
        write(tmp_path, dataset=Stream())
    with pytest.raises(ValueError, match=r"ATLoss names no layers.*pass student="):
        write(tmp_path, losses=[ATLoss()])


def test_layers_that_are_chosen_are_stored_and_chosen_again(tmp_path):
    def networks():
        return (support.seeded(partial(support.StagedNet, width), seed) for width, seed in ((3, 1), (4, 2)))

    student, guide = networks()
    write(tmp_path, teacher=guide, losses=[ATLoss()], student=student)
    module = DistillationModule(next(networks()), CachedTeacher(tmp_path), [ATLoss()])
    support.fit(module, max_epochs=1, limit_val_batches=0)
    assert module.losses["at"].teacher_layers == ("stage1", "stage2")


def test_layers_are_chosen_as_in_the_fit_of_the_teacher_itself(tmp_path):
    def networks():
        return (support.seeded(partial(support.StagedNet, width), seed) for width, seed in ((3, 1), (4, 2)))

    student, guide = networks()
    write(tmp_path, teacher=guide, losses=[RKDLoss()], student=student)
    for task in (nn.CrossEntropyLoss(), None):
        layers = []
        for teacher in (guide, CachedTeacher(tmp_path)):
            module = DistillationModule(next(networks()), teacher, [RKDLoss()], task_loss=task)
            support.fit(module, max_steps=1, limit_val_batches=0)
            layers.append(module.losses["rkd"].teacher_layers)
        assert layers[0] == layers[1]
    with pytest.raises(ValueError, match="'at' names no layers, and none were stored for a part of this name"):
        support.fit(DistillationModule(next(networks()), CachedTeacher(tmp_path), [ATLoss()]))


def test_the_users_own_reading_of_a_batch_is_used(tmp_path):
    rows = TensorDataset(support.data().tensors[1], support.data().tensors[0])
    write(tmp_path, dataset=rows, unpack_batch=lambda batch: Batch(args=(batch[1],), target=batch[0]))
    assert torch.allclose(stored(tmp_path), whole(), rtol=0, atol=1e-6)


class Words(nn.Module):
    """Logits of tokens that depend on the token alone."""

    def __init__(self, words=50, width=8, seed=0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.table = nn.Parameter(torch.randn(words, width, generator=generator))
        self.head = nn.Parameter(torch.randn(width, words, generator=generator))

    def forward(self, input_ids, attention_mask=None):
        return self.table[input_ids] @ self.head


def texts(lengths=(3, 7, 5, 2)):
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(1, 50, (length,), generator=generator) for length in lengths]


def padded(rows, side="right", more=0):
    longest = max(map(len, rows)) + more
    ids, mask = torch.zeros(len(rows), longest, dtype=torch.long), torch.zeros(len(rows), longest, dtype=torch.long)
    for i, row in enumerate(rows):
        place = slice(0, len(row)) if side == "right" else slice(longest - len(row), longest)
        ids[i, place], mask[i, place] = row, 1
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("k", [None, 5, 50])
def test_texts_of_any_length_and_padding_find_their_tokens(tmp_path, side, k):
    guide = Words().requires_grad_(False)
    cache.write(
        guide, texts(), tmp_path, losses=[KDLoss()], dtype="float32", top_k=k, batch_size=2, shard_rows=2,
        collate_fn=padded,
    )  # fmt: skip
    teacher = CachedTeacher(tmp_path)
    batch = padded([texts()[i] for i in (3, 1, 0)], side, more=2)
    found = teacher.answer(batch, Call(kwargs=batch)).output
    mask, whole = batch["attention_mask"].bool(), guide(**batch)
    if k is None:
        assert torch.equal(found[mask], whole[mask])
        return
    expected = SparseLogits.top_k(whole, k)
    assert torch.equal(found.ids[mask], expected.ids[mask])
    assert torch.allclose(found.log_probs[mask], expected.log_probs[mask], atol=1e-6)
    if k == 50:
        student = Words(seed=3)(**batch)
        sparse, dense = (token_kd_loss(student, one, mask=mask) for one in (found, whole))
        assert torch.allclose(sparse, dense, atol=1e-6)


def test_draws_of_the_teacher_are_stored_as_counts(tmp_path):
    guide = Words().requires_grad_(False)
    cache.write(guide, texts(), tmp_path, losses=[KDLoss()], draws=600, batch_size=4, collate_fn=padded)
    batch = padded(texts())
    found = CachedTeacher(tmp_path).answer(batch, Call(kwargs=batch)).output
    mask = batch["attention_mask"].bool()
    share = torch.zeros(*mask.shape, 50).scatter_add_(-1, found.ids, found.log_probs.exp())
    assert (share[mask] - guide(**batch).softmax(-1)[mask]).abs().max() < 0.1


def test_another_length_of_a_text_is_refused(tmp_path):
    guide = Words()
    cache.write(guide, texts(), tmp_path, losses=[KDLoss()], batch_size=4, collate_fn=padded)
    batch = padded([row[:-1] for row in texts()])
    with pytest.raises(ValueError, match="The teacher has not seen them"):
        CachedTeacher(tmp_path).answer(batch, Call(kwargs=batch))


def test_few_tokens_of_class_logits_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"keep tokens of logits \(B, T, V\)"):
        write(tmp_path, top_k=2)


class OfTheBatch(nn.Module):
    """Normalises by the batch, also in eval mode."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.BatchNorm1d(4, track_running_stats=False), nn.Linear(4, 3))

    def forward(self, x):
        return self.net(x)


class OfChance(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Linear(4, 3)

    def forward(self, x):
        return self.net(nn.functional.dropout(x, 0.5))


@pytest.mark.parametrize("teacher", [OfTheBatch, OfChance])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_an_answer_that_is_not_that_of_the_sample_alone_is_not_stored(tmp_path, teacher, dtype):
    rows = TensorDataset(support.seeded(lambda: torch.randn(24, 4), 0))
    with pytest.raises(ValueError, match=r"asked twice about row 0.*track_running_stats=False"):
        write(tmp_path, teacher=support.seeded(teacher, 0), dataset=rows, batch_size=8, dtype=dtype)
    assert not (tmp_path / "manifest.json").exists()


class Scaled(nn.Module):
    """Brings a large column to the size of the others."""

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(8, 3)

    def forward(self, x):
        return self.net(torch.cat([x[:, :1] / 3e5, x[:, 1:]], 1))


def test_rows_that_differ_little_beside_a_large_column_are_told_apart(tmp_path):
    x = support.seeded(lambda: torch.randn(64, 8) * 3, 0)
    x[:, 0] = 3e5
    guide = support.seeded(Scaled, 1)
    write(tmp_path, teacher=guide, dataset=TensorDataset(x), batch_size=16)
    rows = torch.randperm(64)[:20]
    assert torch.allclose(stored(tmp_path, x[rows]), guide(x[rows]), rtol=0, atol=1e-4)


def test_rows_that_cannot_be_told_apart_need_their_numbers(tmp_path):
    x = 1.0 + 1e-9 * support.seeded(lambda: torch.randn(24, 8, dtype=torch.float64), 0)
    guide = support.seeded(lambda: nn.Linear(8, 3), 1).double()
    write(tmp_path, teacher=guide, dataset=TensorDataset(x))
    with pytest.raises(ValueError, match=r"too little, beside their size, to be told apart.*Indexed"):
        stored(tmp_path, x[3:5])
    found = CachedTeacher(tmp_path).answer(None, Call(args=(x[3:5],), index=torch.tensor([3, 4]))).output
    assert torch.allclose(found.double(), guide(x[3:5]), atol=1e-5)


def test_the_same_input_twice_is_no_doubt(tmp_path):
    x = support.data().tensors[0]
    twice = torch.cat([x, x[:5]])
    write(tmp_path, dataset=TensorDataset(twice))
    assert torch.allclose(stored(tmp_path, twice), torch.cat([whole(), whole()[:5]]), rtol=0, atol=1e-6)


class ReadsPadding(nn.Module):
    """The mean of what stands in a row, padding too."""

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(1, 3)

    def forward(self, input_ids, attention_mask=None):
        return self.net(input_ids.float().mean(1, keepdim=True))


@pytest.mark.filterwarnings("ignore:The teacher ReadsPadding gives a row that is padded on the right")
def test_an_answer_that_depends_on_the_padding_is_not_stored(tmp_path):
    with pytest.raises(ValueError, match="or on the padding"):
        cache.write(
            ReadsPadding(), texts(), tmp_path, losses=[KDLoss()], dtype="float32", batch_size=4, collate_fn=padded
        )


def test_of_several_outputs_that_no_loss_names_none_is_stored(tmp_path):
    class TwoHeads(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = support.teacher()

        def forward(self, x):
            return {"out": self.net(x), "aux": -self.net(x)}

    with pytest.raises(ValueError, match=r"stored that the losses name, such as KDLoss\(head='main'\)"):
        write(tmp_path, teacher=TwoHeads(), losses=[KDLoss()])


def test_a_finished_store_of_several_layers_is_known_again(tmp_path):
    def networks():
        return (support.seeded(partial(support.StagedNet, width), seed) for width, seed in ((3, 1), (4, 2)))

    for _ in range(2):
        student, guide = networks()
        write(tmp_path, teacher=guide, losses=[ATLoss()], student=student)


def test_no_row_is_taken_where_more_are_near_than_are_looked_at(tmp_path, monkeypatch):
    monkeypatch.setattr("lightning_kd.files.store.reader._NEAR", 4)
    x = 1.0 + 1e-9 * support.seeded(lambda: torch.randn(24, 8, dtype=torch.float64), 0)
    write(tmp_path, teacher=support.seeded(lambda: nn.Linear(8, 3), 1).double(), dataset=TensorDataset(x))
    with pytest.raises(ValueError, match="any of 24 rows"):
        stored(tmp_path, x[3:5])


def test_one_input_many_times_is_one_input(tmp_path, monkeypatch):
    monkeypatch.setattr("lightning_kd.files.store.reader._NEAR", 4)
    x = support.data().tensors[0][:3].repeat_interleave(8, 0)
    write(tmp_path, dataset=TensorDataset(x))
    assert torch.allclose(stored(tmp_path, x), whole()[:3].repeat_interleave(8, 0), rtol=0, atol=1e-6)


def test_words_tell_rows_of_one_tensor_apart(tmp_path):
    class ByWord(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = support.teacher()

        def forward(self, x, kind):
            sign = torch.tensor([1.0 if one == "p" else -1.0 for one in kind])
            return self.net(x) * sign[:, None]

    x = support.data().tensors[0]
    rows = [{"x": one, "kind": kind} for one in x for kind in "pq"]
    write(tmp_path, teacher=ByWord(), dataset=rows, batch_size=48)
    batch = {"x": x[[2, 2, 7]], "kind": ["q", "p", "q"]}
    found = CachedTeacher(tmp_path).answer(batch, Call(kwargs=batch)).output
    expected = whole()[[2, 2, 7]] * torch.tensor([[-1.0], [1.0], [-1.0]])
    assert torch.allclose(found, expected, rtol=0, atol=1e-6)


def test_an_empty_batch_has_an_empty_answer(tmp_path):
    write(tmp_path, losses=support.default_losses())
    assert stored(tmp_path, support.data().tensors[0][:0]).shape == (0, support.CLASSES)


class Brighter(TensorDataset):
    """Views that differ by less than bfloat16 resolves."""

    def __getitem__(self, row):
        (x,) = super().__getitem__(row)
        return (x * (1.0 + 1e-3 * torch.rand(())),)


def test_a_view_is_the_nearest_or_is_refused_where_16_bits_do_not_tell(tmp_path):
    rows = Replayed(Brighter(support.data().tensors[0]), views=3)
    write(tmp_path, dataset=rows, batch_size=72)
    teacher, index = CachedTeacher(tmp_path), torch.arange(24)
    for view in range(3):
        x = torch.stack([rows.view(row, view)[0] for row in range(24)])
        with torch.no_grad():
            expected = support.teacher().eval()(x)
        found = teacher.answer(None, Call(args=(x,), index=index)).output
        assert torch.allclose(found, expected, rtol=0, atol=1e-6)
        with pytest.raises(ValueError, match="to be told apart"):
            teacher.answer(None, Call(args=(x.bfloat16(),), index=index))


def test_the_fingerprint_of_texts_does_not_depend_on_their_padding(tmp_path):
    found = []
    for size in (1, 4):
        folder = cache.write(
            Words(), texts(), tmp_path / str(size), losses=[KDLoss()], batch_size=size, collate_fn=padded
        )
        found.append(json.loads((folder / "manifest.json").read_text())["data"])
    assert found[0] == found[1]


def test_layers_that_were_chosen_without_a_task_are_not_those_of_a_fit_with_one(tmp_path):
    def networks():
        return (support.seeded(partial(support.StagedNet, width), seed) for width, seed in ((3, 1), (4, 2)))

    student, guide = networks()
    module = DistillationModule(student, guide, [RKDLoss()])
    form = Format(torch.float32)
    writer_of(module, support.data(), folder=tmp_path, form=form, transfer=lambda batch: batch).write()
    for task, said in ((None, None), (nn.CrossEntropyLoss(), "none were stored for a part of this name")):
        module = DistillationModule(next(networks()), CachedTeacher(tmp_path), [RKDLoss()], task_loss=task)
        with pytest.raises(ValueError, match=said) if said else nullcontext():
            support.fit(module, max_steps=1, limit_val_batches=0)
