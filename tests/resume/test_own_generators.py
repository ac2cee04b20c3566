"""Data that draws from random generators of its own goes on where the interrupted run has left it."""

import random
from functools import partial

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.utilities import CombinedLoader
from torch import nn
from torch.utils._pytree import tree_leaves
from torch.utils.data import (
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    Subset,
    WeightedRandomSampler,
)

from lightning_kd import Batch, DistillationCallback, DistillationModule
from lightning_kd.losses import KDLoss
from tests import support

ROWS = support.data(20)
EPOCHS = 3


def own(seed=5):
    return torch.Generator().manual_seed(seed)


class Shuffling(Sampler):
    """Shuffles by generators of NumPy and of Python."""

    def __init__(self):
        self.numpy, self.older = np.random.Generator(np.random.MT19937(0)), np.random.RandomState(0)
        self.python, self.newest = random.Random(0), np.random.default_rng(0)

    def __len__(self):
        return 20

    def __iter__(self):
        order = self.older.permutation(self.numpy.permutation(20))[self.newest.permutation(20)].tolist()
        self.python.shuffle(order)
        return iter(order)


class Noisy(Dataset):
    """Adds noise of its own to each row."""

    def __init__(self):
        self.noise = own()

    def __len__(self):
        return 20

    def __getitem__(self, row):
        x, y = ROWS[row]
        return x + torch.randn(x.shape, generator=self.noise), y


class Stream(IterableDataset):
    """Shuffles by a generator of its own, row by row as they are asked for."""

    def __init__(self):
        self.order = own()

    def __iter__(self):
        left = list(range(20))
        while left:
            yield ROWS[left.pop(int(torch.randint(len(left), (), generator=self.order)))]


class Batches:
    """Is no data loader of torch's."""

    def __init__(self):
        self.rows = Stream()

    def __iter__(self):
        return iter(DataLoader(self.rows, batch_size=8))


def shared():
    both = own()
    return DataLoader(ROWS, batch_size=8, sampler=RandomSampler(ROWS, generator=both), generator=both)


def combined():
    first = DataLoader(ROWS, batch_size=8, shuffle=True, generator=own(1))
    return CombinedLoader([first, DataLoader(ROWS, batch_size=8, shuffle=True, generator=own(2))], "max_size")


LOADERS = {
    "loader": lambda: DataLoader(ROWS, batch_size=8, shuffle=True, generator=own()),
    "sampler": lambda: DataLoader(ROWS, batch_size=8, sampler=RandomSampler(ROWS, generator=own())),
    "replacing": lambda: DataLoader(
        ROWS, batch_size=8, sampler=RandomSampler(ROWS, replacement=True, num_samples=20, generator=own())
    ),
    "weighted": lambda: DataLoader(
        ROWS, batch_size=8, sampler=WeightedRandomSampler(torch.arange(1.0, 21.0), 20, generator=own())
    ),
    "shared": shared,
    "combined": combined,
    "by epoch": lambda: DataLoader(ROWS, batch_size=8, sampler=DistributedSampler(ROWS, num_replicas=1, rank=0)),
    "not of torch": lambda: DataLoader(ROWS, batch_size=8, sampler=Shuffling()),
    "stream": lambda: DataLoader(Stream(), batch_size=8),
    "batches": Batches,
    "data set": lambda: DataLoader(Noisy(), batch_size=8, shuffle=True),
    "workers": lambda: DataLoader(ROWS, batch_size=8, shuffle=True, generator=own(), num_workers=1),
}


class Joining(DistillationModule):
    """Trains on the batches of two loaders."""

    def unpack_batch(self, batch):
        if isinstance(batch[0], list):
            batch = [torch.cat(parts) for parts in zip(*batch, strict=True)]
        return Batch(args=(batch[0],), target=batch[1])


class Watching(Callback):
    """Remembers what each batch held, and writes a checkpoint after every batch and epoch if it has a folder."""

    def __init__(self, folder=None):
        self.folder, self.seen, self.saved = folder, [], {}

    def save(self, trainer, where):
        if self.folder is not None:
            path = self.folder / f"{len(self.seen)} {where}.ckpt"
            trainer.save_checkpoint(path)
            self.saved[path] = len(self.seen)

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.seen.append(sum(leaf.double().sum().item() for leaf in tree_leaves(batch)))

    def on_train_batch_end(self, trainer, *_):
        self.save(trainer, "batch")

    def on_train_epoch_end(self, trainer, *_):
        self.save(trainer, "epoch")


def fit(door, loader, watching, seed, ckpt_path=None, **options):
    net, guide = support.student(), support.teacher()
    if door == "module":
        optimizer = partial(torch.optim.SGD, lr=0.1)
        made = Joining(net, guide, [KDLoss()], task_loss=nn.CrossEntropyLoss(), optimizer=optimizer)
        callbacks = [watching]
    else:
        made, callbacks = support.UserModule(net), [DistillationCallback(guide, [KDLoss()]), watching]
    options = {"max_epochs": EPOCHS, "limit_val_batches": 0, "callbacks": callbacks} | options
    torch.manual_seed(seed)
    support.trainer(**options).fit(made, loader, support.loader(), ckpt_path=ckpt_path)
    return made


QUICK = [
    ("module", name)
    for name in ("loader", "shared", "by epoch", "combined", "not of torch", "data set", "stream", "batches")
]
SLOW = [("module", "sampler"), ("module", "replacing"), ("module", "weighted"), ("module", "workers")]
CASES = [*QUICK, *(pytest.param(*case, marks=pytest.mark.slow) for case in [*SLOW, ("callback", "loader")])]


@pytest.mark.parametrize(("door", "name"), CASES)
def test_a_fit_that_goes_on_reads_what_the_uninterrupted_one_reads(door, name, tmp_path):
    loader = LOADERS[name]
    whole, alone = Watching(tmp_path), Watching()
    expected = fit(door, loader(), whole, seed=3)
    fit(door, loader(), alone, seed=3)
    assert whole.seen == alone.seen
    assert len(set(whole.seen)) == 9
    places = list(whole.saved.items())[:-1]
    for path, done in places[::5] if name == "workers" else places[::3]:
        resumed = Watching()
        found = fit(door, loader(), resumed, seed=77, ckpt_path=path)
        assert resumed.seen == whole.seen[done:], path.name
        support.assert_same_weights(found, expected)


def interrupted(loader, folder, place, **options):
    """Fit, and return the checkpoint of a place with how many batches were read by then, and all that were read."""
    watching = Watching(folder)
    fit("module", loader, watching, seed=3, **options)
    ((path, done),) = [(path, done) for path, done in watching.saved.items() if path.stem == place]
    return path, watching.seen[done:]


class Asked(DistillationModule):
    """Makes its loader itself, with a generator of its own each time."""

    def train_dataloader(self):
        return LOADERS["loader"]()


@pytest.mark.parametrize(("every", "place"), [(1, "3 epoch"), (1, "5 batch"), (2, "5 batch"), (2, "6 epoch")])
def test_new_loaders_begin_anew_where_the_uninterrupted_run_asks_for_them(every, place, tmp_path):
    def run(watching, seed, ckpt_path=None):
        optimizer = partial(torch.optim.SGD, lr=0.1)
        options = {"task_loss": nn.CrossEntropyLoss(), "optimizer": optimizer}
        made = Asked(support.student(), support.teacher(), [KDLoss()], **options)
        torch.manual_seed(seed)
        options = {"max_epochs": EPOCHS, "limit_val_batches": 0, "reload_dataloaders_every_n_epochs": every}
        support.trainer(callbacks=[watching], **options).fit(
            made, val_dataloaders=support.loader(), ckpt_path=ckpt_path
        )
        return watching.seen

    whole = Watching(tmp_path)
    run(whole, 3)
    assert (whole.seen[3:6] == whole.seen[6:]) == (every == 1)  # the same generator made again
    assert run(Watching(), 77, tmp_path / f"{place}.ckpt") == whole.seen[int(place[0]) :]


def without_generators(path):
    checkpoint = torch.load(path, weights_only=True)
    for process in checkpoint["lightning_kd"]["processes"]:
        del process["data_generators"]
    torch.save(checkpoint, path)


def cycling(generator=None):
    short = DataLoader(Subset(ROWS, range(12)), batch_size=8, shuffle=True, generator=generator)
    return CombinedLoader([short, DataLoader(ROWS, batch_size=4, shuffle=True)], "max_size_cycle")


def test_a_shorter_loader_that_has_begun_anew_is_warned_of_and_with_a_generator_goes_on(tmp_path):
    path, _ = interrupted(cycling(), tmp_path, "4 batch")
    with pytest.warns(UserWarning, match="shorter of the training loaders had begun anew.*a generator of its own"):
        fit("module", cycling(), Watching(), seed=77, ckpt_path=path)
    path, left = interrupted(cycling(own()), tmp_path / "own", "4 batch")
    resumed = Watching()
    fit("module", cycling(own()), resumed, seed=77, ckpt_path=path)
    assert resumed.seen == left


class Counting(nn.Linear):
    """Has a state that is no tensor."""

    def get_extra_state(self):
        return {"count": 3}

    def set_extra_state(self, state):
        self.count = state["count"]


def test_a_student_with_a_state_of_its_own_goes_on(tmp_path):
    def run(watching, ckpt_path=None):
        student = nn.Sequential(nn.Flatten(), Counting(16, support.CLASSES))
        made = DistillationModule(student, support.teacher(), [KDLoss()], task_loss=nn.CrossEntropyLoss())
        support.fit(
            made, train=support.loader(), callbacks=[watching], max_epochs=2, limit_val_batches=0, ckpt_path=ckpt_path
        )
        return student

    whole = Watching(tmp_path)
    run(whole)
    assert run(Watching(), next(iter(whole.saved)))[1].count == 3


class OfEpoch(DistillationModule):
    """Gives data that depends on the epoch, as of images that grow."""

    def train_dataloader(self):
        return DataLoader([(x + self.current_epoch, y) for x, y in ROWS], batch_size=8)


def test_loaders_that_depend_on_the_epoch_are_those_of_the_uninterrupted_run(tmp_path):
    def run(watching, ckpt_path=None):
        made = OfEpoch(support.student(), support.teacher(), [KDLoss()], task_loss=nn.CrossEntropyLoss())
        options = {"max_epochs": EPOCHS, "limit_val_batches": 0, "reload_dataloaders_every_n_epochs": 1}
        torch.manual_seed(3)
        support.trainer(callbacks=[watching], **options).fit(
            made, val_dataloaders=support.loader(), ckpt_path=ckpt_path
        )

    whole = Watching(tmp_path)
    run(whole)
    for path, done in [*whole.saved.items()][:-1]:
        resumed = Watching()
        run(resumed, path)
        assert resumed.seen == whole.seen[done:], path.name


@pytest.mark.parametrize("place", ["3 epoch", "5 batch"])
def test_a_checkpoint_that_does_not_tell_the_states_is_warned_of(place, tmp_path):
    path, left = interrupted(LOADERS["loader"](), tmp_path, place)
    without_generators(path)
    resumed = Watching()
    with pytest.warns(UserWarning, match="random generators of its own .* a version that did not keep them"):
        fit("module", LOADERS["loader"](), resumed, seed=77, ckpt_path=path)
    assert len(resumed.seen) == len(left)


@pytest.mark.parametrize("other", ["not of torch", "combined"])
def test_data_with_other_generators_is_warned_of(other, tmp_path):
    path, _ = interrupted(LOADERS["loader"](), tmp_path, "3 epoch")
    with pytest.warns(UserWarning, match="holds those of .*torch.Generator on cpu.*Make the data loaders and samplers"):
        fit("module", LOADERS[other](), Watching(), seed=77, ckpt_path=path)


def test_data_without_generators_goes_on_from_an_older_checkpoint_without_a_word(tmp_path):
    path, left = interrupted(DataLoader(ROWS, batch_size=8), tmp_path, "3 epoch")
    without_generators(path)
    resumed = Watching()
    fit("module", DataLoader(ROWS, batch_size=8), resumed, seed=77, ckpt_path=path)
    assert resumed.seen == left


class Drawing(Noisy):
    """The same with the random state of torch, which a worker carries from epoch to epoch if it persists."""

    def __init__(self):
        self.noise = None


@pytest.mark.parametrize("data", [Noisy, Drawing])
def test_persistent_workers_are_warned_of_where_a_later_epoch_goes_on(data, tmp_path):
    def loader():
        return DataLoader(data(), batch_size=8, num_workers=1, persistent_workers=True)

    path, left = interrupted(loader(), tmp_path, "3 epoch")
    resumed = Watching()
    with pytest.warns(UserWarning, match="keep their random states .* Set persistent_workers=False"):
        fit("module", loader(), resumed, seed=77, ckpt_path=path)
    assert resumed.seen != left


def test_persistent_workers_go_on_within_the_first_epoch_without_a_word(tmp_path):
    def loader():
        return DataLoader(Drawing(), batch_size=8, num_workers=1, persistent_workers=True)

    path, left = interrupted(loader(), tmp_path, "1 batch")
    resumed = Watching()
    fit("module", loader(), resumed, seed=77, ckpt_path=path)
    assert resumed.seen == left
