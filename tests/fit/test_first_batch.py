"""The look at the data before a fit reads nothing that the Trainer would not read, and uses nothing up.

What a plain LightningModule sees of the same data is what is right, for every dress of the data.
"""

import os
import random
from functools import partial
from itertools import count

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Sampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from lightning_kd import DistillationCallback, DistillationModule
from lightning_kd.data import Indexed
from lightning_kd.losses import CRDLoss, KDLoss
from tests import support

pytestmark = pytest.mark.filterwarnings(
    "ignore:You defined a `validation_step`",
    "ignore:Consider setting `persistent",
    "ignore:The batch of step 0 holds no",
)
ROWS, DOORS = 12, ["module", "callback"]


def net():
    return support.seeded(partial(nn.Linear, 2, 3), 5)


def sample(row, scale=1.0):
    return torch.tensor([float(row), scale]), row % 3


class Plain(LightningModule):
    """Notes the first number of each row that it trains on."""

    def __init__(self):
        super().__init__()
        self.net, self.seen = net(), []

    def training_step(self, batch, batch_idx):
        x, y = batch
        if self._trainer.state.stage is not None and self.trainer.fit_loop.epoch_loop.batch_progress.current.ready:
            self.seen.append(x.tolist())
        return nn.functional.cross_entropy(self.net(x), y)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


class Distilled(DistillationModule):
    """The same in the other door."""

    def training_step(self, batch, batch_idx):
        self.seen.append(batch[0].tolist())
        return super().training_step(batch, batch_idx)


def made(door, losses=None):
    losses = [KDLoss()] if losses is None else losses
    if door == "module":
        module = Distilled(
            net(), net(), losses, task_loss=nn.CrossEntropyLoss(), optimizer=partial(torch.optim.SGD, lr=0.01)
        )
        module.seen = []
        return module, []
    return Plain(), [] if door == "plain" else [DistillationCallback(net(), losses)]


def seen(door, data, epochs=2, **options):
    """The rows of each batch that a door trains on, with what data() makes."""
    module, callbacks = made(door)
    torch.manual_seed(3)
    random.seed(3)
    np.random.seed(3)
    given = data()
    trainer = support.trainer(max_epochs=epochs, callbacks=callbacks, **options)
    trainer.fit(module, **(given if isinstance(given, dict) else {"train_dataloaders": given}))
    return module.seen


def check_as_plain(door, data, batches=None, **options):
    right = seen("plain", data, **options)
    assert right
    assert batches is None or len(right) == batches
    assert seen(door, data, **options) == right


class Rows(Dataset):
    """Notes in a file which process opened it, and in a list which rows were read in this one."""

    def __init__(self, path=None, broken=()):
        self.path, self.broken, self.handle, self.read = path, broken, None, []

    def __len__(self):
        return ROWS

    def __getitem__(self, row):
        if row in self.broken:
            raise OSError(f"row {row} cannot be read")
        if self.handle is None and self.path is not None:
            self.handle = open(self.path, "a")  # noqa: SIM115  kept open, as such data sets do
            self.handle.write(f"{os.getpid()}\n")
            self.handle.flush()
        self.read.append(row)
        return sample(row)


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("context", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_a_file_that_workers_open_is_never_opened_in_the_main_process(door, context, tmp_path):
    rows = Rows(tmp_path / "opened")
    batches = seen(door, lambda: DataLoader(rows, 4, num_workers=1, multiprocessing_context=context), epochs=1)
    assert [x for batch in batches for x, _ in batch] == list(range(ROWS))
    assert rows.handle is None
    opened = (tmp_path / "opened").read_text().split()
    assert opened
    assert str(os.getpid()) not in opened


@pytest.mark.parametrize("door", DOORS)
def test_what_a_worker_is_given_by_its_init_function_is_there(door):
    def init(_):
        torch.utils.data.get_worker_info().dataset.path = os.devnull

    class ByInit(Rows):
        def __getitem__(self, row):
            assert self.path == os.devnull
            return sample(row)

    check_as_plain(door, lambda: DataLoader(ByInit(), 4, num_workers=2, worker_init_fn=init), 6)


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("workers", [0, 1])
def test_rows_that_are_never_drawn_are_never_read(door, workers):
    def data():
        return DataLoader(
            Rows(broken=(0, 1)), 4, sampler=SubsetRandomSampler(range(2, ROWS)), num_workers=workers, drop_last=True
        )

    check_as_plain(door, data, 4)


@pytest.mark.parametrize("door", DOORS)
def test_two_rows_of_the_first_batch_are_read_and_no_others(door):
    rows = Rows()
    seen(door, lambda: DataLoader(rows, 4, sampler=[7, 3, 8, 9]), epochs=1)
    assert rows.read == [7, 3, 7, 3, 8, 9]


class OfOwnSize(Dataset):
    def __len__(self):
        return ROWS

    def __getitem__(self, row):
        return torch.ones(2 + row % 2, 2) * row, row % 3


class Pooled(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = net()

    def forward(self, x):
        return self.head(x.mean(1))


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("options", [{"batch_size": 1}, {"batch_sampler": [[0, 2, 4], [1, 3, 5], [6, 8, 10]]}])
def test_samples_of_own_size_train(door, options):
    module, callbacks = support.through(door, Pooled(), guide=Pooled(), losses=[KDLoss()])
    trainer = support.trainer(max_epochs=1, callbacks=callbacks)
    trainer.fit(module, DataLoader(OfOwnSize(), **options))
    assert trainer.global_step == (12 if "batch_size" in options else 3)


class Keys(Rows):
    def __getitem__(self, key):
        row, scale = key
        return sample(row, scale)


class Counting(Sampler):
    """Draws from a counter of its own, which every draw advances."""

    def __init__(self):
        self.counter = count()

    def __len__(self):
        return ROWS

    def __iter__(self):
        for _ in range(ROWS):
            yield next(self.counter) % ROWS


class EpochBatches:
    """A batch sampler of another order in every epoch, which it counts itself."""

    def __init__(self):
        self.epoch = 0

    def __len__(self):
        return 3

    def __iter__(self):
        self.epoch += 1
        for start in range(3):
            yield [(self.epoch + start + 3 * i) % ROWS for i in range(4)]


class Shuffling(Sampler):
    def __init__(self):
        self.rows, self.random = list(range(ROWS)), random.Random(4)

    def __len__(self):
        return ROWS

    def __iter__(self):
        self.random.shuffle(self.rows)
        return iter(self.rows)


def own():
    return torch.Generator().manual_seed(8)


SAMPLERS = {
    "in order": lambda: DataLoader(Rows(), 4),
    "shuffled": lambda: DataLoader(Rows(), 4, shuffle=True),
    "own generator": lambda: DataLoader(Rows(), 4, shuffle=True, generator=own()),
    "the sampler's generator": lambda: DataLoader(Rows(), 4, sampler=RandomSampler(range(ROWS), generator=own())),
    "weighted": lambda: DataLoader(Rows(), 4, sampler=WeightedRandomSampler(torch.rand(ROWS), ROWS, generator=own())),
    "counting": lambda: DataLoader(Rows(), 5, sampler=Counting()),
    "shuffling a list": lambda: DataLoader(Rows(), 5, sampler=Shuffling()),
    "batches": lambda: DataLoader(Rows(), batch_sampler=EpochBatches()),
    "batches of a generator": lambda: DataLoader(
        Rows(), batch_sampler=BatchSampler(RandomSampler(range(ROWS), generator=own()), 4, drop_last=True)
    ),
    "keys": lambda: DataLoader(Keys(), 4, sampler=[(row, 1.0 + row % 2) for row in range(ROWS)]),
    "once": lambda: DataLoader(Rows(), 4, sampler=(row for row in range(ROWS))),
    "no batches": lambda: DataLoader([(torch.ones(2, 2) * i, torch.tensor([0, 1])) for i in range(4)], batch_size=None),
    "two workers": lambda: DataLoader(Rows(), 4, shuffle=True, num_workers=2),
    "kept workers": lambda: DataLoader(Rows(), 4, shuffle=True, num_workers=1, persistent_workers=True),
    "fewer rows than a batch": lambda: DataLoader(Rows(), 16),
}


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("name", SAMPLERS)
def test_samplers_are_not_advanced(door, name):
    check_as_plain(door, SAMPLERS[name])


class Augmented(Rows):
    """Draws from generators of its own, and from the global ones."""

    def __init__(self):
        super().__init__()
        self.parts = {"torch": own(), "python": random.Random(2), "numpy": [np.random.default_rng(3)]}

    def __getitem__(self, row):
        drawn = torch.rand((), generator=self.parts["torch"]).item() + self.parts["python"].random()
        drawn += self.parts["numpy"][0].random() + torch.rand(()).item() + random.random() + np.random.rand()
        return sample(row, drawn)


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("workers", [0, 2])
def test_generators_of_the_data_set_are_as_they_were(door, workers):
    check_as_plain(door, lambda: DataLoader(Augmented(), 4, shuffle=True, num_workers=workers), 6)


class Stream(IterableDataset):
    """Begins anew with every iterator."""

    def __iter__(self):
        for row in range(ROWS):
            yield sample(row)


class Position(IterableDataset):
    """Goes on where it stood: what is taken is gone."""

    def __init__(self):
        self.row = 0

    def __iter__(self):
        for _ in range(ROWS):
            self.row += 1
            yield sample(self.row)


class Drawn(IterableDataset):
    def __iter__(self):
        for row in torch.randperm(ROWS).tolist():
            yield sample(row, random.random())


def pairs(scale=1.0):
    for start in range(6):
        x = torch.tensor([[float(start), scale], [start + 0.5, scale]])
        yield x, torch.tensor([0, 1])


class PlainIterable:
    def __iter__(self):
        return pairs(torch.rand(()).item())


class StandsWhereItStood:
    """Begins an epoch with the batch after the last of the epoch before."""

    def __init__(self):
        self.batches = pairs()

    def __iter__(self):
        for _ in range(3):
            yield next(self.batches)


class SizedIterator:
    def __init__(self):
        self.rest = pairs()

    def __len__(self):
        return 6

    def __iter__(self):
        return self

    def __next__(self):
        return next(self.rest)


def with_empty():
    yield torch.empty(0, 2), torch.empty(0, dtype=torch.long)
    yield from pairs()


STREAMS = {
    "restarted": lambda: DataLoader(Stream(), 4),
    "restarted, in workers": lambda: DataLoader(Stream(), 4, num_workers=2),
    "restarted, in kept workers": lambda: DataLoader(Stream(), 4, num_workers=1, persistent_workers=True),
    "goes on": lambda: DataLoader(Position(), 4),
    "goes on, in a worker": lambda: DataLoader(Position(), 4, num_workers=1),
    "goes on, in a kept worker": lambda: DataLoader(Position(), 4, num_workers=1, persistent_workers=True),
    "goes on, own generator": lambda: DataLoader(Position(), 4, generator=own()),
    "draws": lambda: DataLoader(Drawn(), 4),
    "draws, in workers": lambda: DataLoader(Drawn(), 4, num_workers=2),
    "draws, in workers, own generator": lambda: DataLoader(Drawn(), 4, num_workers=2, generator=own()),
    "a generator": lambda: pairs(),
    "an iterator with a length": lambda: SizedIterator(),
    "begins with an empty batch": lambda: with_empty(),
    "an iterable": lambda: PlainIterable(),
    "an iterable that goes on": lambda: StandsWhereItStood(),
    "a list": lambda: support.Batches(pairs()),
}


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("name", STREAMS)
def test_no_batch_of_a_stream_is_lost_or_seen_twice(door, name):
    if name == "begins with an empty batch":  # whose loss is NaN in a plain module
        batches = seen(door, with_empty, epochs=1)
        assert batches == [[], *([[float(i), 1.0], [i + 0.5, 1.0]] for i in range(6))]
    else:
        check_as_plain(door, STREAMS[name])


@pytest.mark.parametrize(
    ("door", "name"), [("module", "draws, in workers"), ("callback", "draws, in workers, own generator")]
)
def test_seeded_workers_draw_what_they_would_have_drawn(door, name, monkeypatch):
    """As after ``seed_everything(workers=True)``."""
    monkeypatch.setenv("PL_SEED_WORKERS", "1")
    check_as_plain(door, STREAMS[name])


@pytest.mark.parametrize("door", DOORS)
def test_a_stream_after_other_random_numbers_draws_its_own(door):
    """Somebody draws between the look and the beginning of the data: the data must draw what it would have drawn."""

    class Drawing(support.Callback):
        def on_fit_start(self, *_):
            torch.rand(3)
            random.random()

    for data in (STREAMS["draws"], STREAMS["draws, in workers"], STREAMS["restarted"], STREAMS["goes on"]):
        right, model = [], None
        for way in ("plain", door):
            module, callbacks = made(way)
            torch.manual_seed(3)
            random.seed(3)
            support.trainer(max_epochs=2, callbacks=[*callbacks, Drawing()]).fit(module, data())
            right, model = (module.seen, right) if way == "plain" else (right, module.seen)
        assert model == right


def hooked(kind, base, calls):
    """A data module, or a door's module, whose hook counts its calls."""

    def train_dataloader(self):
        calls.append(1)
        return DataLoader(Rows() if kind == "rows" else Position(), 4, shuffle=True if kind == "rows" else None)

    return type("Hooked", (base,), {"train_dataloader": train_dataloader})


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("kind", ["rows", "stream"])
@pytest.mark.parametrize("reload", [0, 1])
def test_the_hook_is_called_as_often_as_by_plain_lightning(door, kind, reload):
    def by_data_module(calls):
        return lambda: {"datamodule": hooked(kind, LightningDataModule, calls)()}

    counts = [], []
    options = {"reload_dataloaders_every_n_epochs": reload}
    right = seen("plain", by_data_module(counts[0]), **options)
    assert seen(door, by_data_module(counts[1]), **options) == right
    assert len(counts[1]) == len(counts[0]) == 1 + reload
    calls = []
    module, callbacks = made(door)
    module.__class__ = hooked(kind, type(module), calls)
    trainer = support.trainer(max_epochs=2, callbacks=callbacks, **options)
    torch.manual_seed(3)
    trainer.fit(module)
    assert module.seen == right
    assert len(calls) == 1 + reload


def test_a_loss_that_asks_for_the_rows_does_not_call_the_hook_again():
    calls = []

    class Data(LightningDataModule):
        def train_dataloader(self):
            calls.append(1)
            return DataLoader(Indexed(support.data()), 8)

    support.trainer().fit(support.module(losses=[CRDLoss("features", "features", dim=4, negatives=4)]), Data())
    assert len(calls) == 1


def test_a_hook_is_asked_again_if_what_it_depends_on_has_changed():
    class Data(LightningDataModule):
        def __init__(self):
            super().__init__()
            self.batch_size = 2

        def train_dataloader(self):
            return DataLoader(Rows(), self.batch_size)

    class Changing(support.Callback):
        def on_fit_start(self, trainer, pl_module):
            trainer.datamodule.batch_size = 6

    module, _ = made("module")
    trainer = support.trainer(max_epochs=1, callbacks=[Changing()])
    trainer.fit(module, datamodule=Data())
    assert trainer.global_step == 2


def test_several_streams_in_one():
    class Sum(Plain):
        def training_step(self, batch, batch_idx):
            return super().training_step([torch.cat(parts) for parts in zip(*batch.values(), strict=True)], batch_idx)

    def run(callbacks, base):
        module = base()
        torch.manual_seed(3)
        loaders = {"rows": DataLoader(Rows(), 4, shuffle=True), "stream": DataLoader(Position(), 4), "once": pairs()}
        trainer = support.trainer(max_epochs=1, callbacks=callbacks)
        trainer.fit(module, loaders)
        return module.seen

    assert run([DistillationCallback(net(), [KDLoss()])], Sum) == run([], Sum)


@pytest.mark.parametrize("door", DOORS)
def test_data_that_cannot_be_read_is_told_with_the_way_around(door):
    with pytest.raises(RuntimeError, match=r"row 0 cannot be read.*example_input_array"):
        seen(door, lambda: DataLoader(Rows(broken=(0,)), 4))


def test_with_an_example_nothing_is_read():
    rows = Rows(broken=range(ROWS))
    module, _ = made("module")
    module.example_input_array = torch.zeros(2, 2)
    with pytest.raises(OSError, match="row 0 cannot be read"):
        support.trainer().fit(module, DataLoader(rows, 4))


@pytest.mark.parametrize("door", DOORS)
def test_a_loader_is_the_object_that_it_was(door):
    for loader in (DataLoader(Stream(), 4), DataLoader(Rows(), 4)):
        before = dict(vars(loader))
        seen(door, lambda loader=loader: loader)
        assert vars(loader) == before
