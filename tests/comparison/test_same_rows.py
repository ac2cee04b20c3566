"""Rows that are held out of the training, and numbered for losses that need it."""

import pytest
import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, IterableDataset, TensorDataset, WeightedRandomSampler, random_split

from lightning_kd.comparison import SameRows
from lightning_kd.data import DigitsDataModule


class Split(LightningDataModule):
    """Splits by random numbers, as many users do."""

    def setup(self, stage):
        rows = TensorDataset(torch.arange(20.0).unsqueeze(1), torch.arange(20))
        self.train, self.val = random_split(rows, [15, 5])

    def train_dataloader(self):
        return DataLoader(self.train, 4, shuffle=True)

    def val_dataloader(self):
        return DataLoader(self.val, 4)


def rows_of(loader):
    return sorted(torch.cat([batch[1] for batch in loader]).tolist())


def served(seed, before=0, **options):
    torch.manual_seed(before)
    data = SameRows(Split(), seed, **options)
    data.prepare_data()
    data.setup("fit")
    return rows_of(data.train_dataloader()), rows_of(data.val_dataloader())


def test_a_split_by_chance_depends_on_the_seed_alone():
    assert served(1) == served(1, before=5)
    assert served(1) != served(2)


def test_held_out_rows_are_training_rows_that_are_not_trained_on():
    train, held_out = served(1, held_out=0.2)
    everything, val = served(1)
    assert sorted(train + held_out) == everything
    assert (len(train), len(held_out)) == (12, 3)
    assert not set(held_out) & set(val)


def test_samples_get_the_row_they_do_not_have():
    data = SameRows(DigitsDataModule(batch_size=10), with_index=True)
    data.setup("fit")
    _, _, index = next(iter(data.train_dataloader()))
    assert len(set(index.tolist())) == 10
    has_it = SameRows(DigitsDataModule(batch_size=10, with_index=True), with_index=True)
    has_it.setup("fit")
    assert len(next(iter(has_it.train_dataloader()))) == 3
    assert len(next(iter(data.val_dataloader()))) == 2


class Stream(IterableDataset):
    def __iter__(self):
        return iter([(torch.zeros(1), 0)])


@pytest.mark.parametrize("loader", [DataLoader(Stream()), "sampled"])
def test_data_without_rows_to_choose_is_refused(loader):
    class Other(Split):
        def train_dataloader(self):
            return DataLoader(self.train, 4, sampler=WeightedRandomSampler([1.0], 3)) if loader == "sampled" else loader

    data = SameRows(Other(), held_out=0.5)
    data.setup("fit")
    with pytest.raises(ValueError, match=r"whose rows cannot be chosen.*leave it out"):
        data.train_dataloader()
    with pytest.raises(ValueError, match="between 0 and 1"):
        SameRows(Other(), held_out=1.0)
