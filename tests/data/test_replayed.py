"""Augmentation that comes again, whoever reads it."""

import random

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

from lightning_kd.data import DigitsDataModule, Replayed


class Noisy(Dataset):
    def __len__(self):
        return 5

    def __getitem__(self, row):
        return torch.tensor([row + torch.rand(()).item(), np.random.rand(), random.random()])


def test_a_view_is_the_same_each_time_and_another_one_differs():
    data = Replayed(Noisy(), views=3)
    again = Replayed(Noisy(), views=3)
    seen = {tuple(data.view(row, view).tolist()) for row in range(5) for view in range(3)}
    assert len(seen) == 15
    torch.manual_seed(3)
    assert all(torch.equal(data.view(r, v), again.view(r, v)) for r in range(5) for v in range(3))
    assert not torch.equal(data.view(0, 0), Replayed(Noisy(), views=3, seed=1).view(0, 0))


def test_every_view_is_read_and_no_other():
    data = Replayed(Noisy(), views=2)
    seen = {tuple(sample.tolist()) for _ in range(20) for sample in DataLoader(data, batch_size=None)}
    assert seen == {tuple(data.view(row, view).tolist()) for row in range(5) for view in range(2)}


def test_the_random_states_are_as_before():
    data = Replayed(Noisy(), views=2)
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    data.view(1, 1)
    assert torch.equal(states[0], torch.get_rng_state())
    assert (states[1] == np.random.get_state()[1]).all()
    assert states[2] == random.getstate()


def test_rows_from_the_end_and_views_that_do_not_exist():
    data = Replayed(Noisy(), views=2)
    assert torch.equal(data.view(-1, 0), data.view(4, 0))
    with pytest.raises(IndexError, match="there are 2 views"):
        data.view(0, 2)


class Stream(IterableDataset):
    def __iter__(self):
        return iter(())


def test_what_has_no_rows_or_no_views_is_refused():
    with pytest.raises(TypeError, match="expected a data set with"):
        Replayed(Stream(), 2)
    with pytest.raises(TypeError, match="fixed already"):
        Replayed(Replayed(Noisy(), 2), 2)
    with pytest.raises(ValueError, match="views >= 1"):
        Replayed(Noisy(), 0)


def test_digits_in_fixed_views_are_augmented():
    digits, plain = DigitsDataModule(views=2), DigitsDataModule(augment=False)
    digits.setup()
    plain.setup()
    rows = digits.train_dataloader().dataset
    (first, target), (second, _) = rows.view(3, 0), rows.view(3, 1)
    image, label = plain.train_set[3]
    assert first.shape == image.shape
    assert target == label
    assert not torch.equal(first, second)
    assert not torch.equal(first, image)
    with pytest.raises(ValueError, match="give views alone"):
        DigitsDataModule(views=2, with_index=True)
