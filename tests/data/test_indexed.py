"""Indexed data sets: samples with their row, and the classes of all rows."""

import pickle
from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import ConcatDataset, DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from lightning_kd.data import Indexed
from lightning_kd.data.indexed import targets_of

X, Y = torch.arange(10).float().view(5, 2), torch.tensor([3, 1, 2, 1, 0])


class Listed(Dataset):
    """A data set as people write them."""

    def __init__(self, samples, **attributes):
        self.samples = samples
        vars(self).update(attributes)

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        return self.samples[index]


def test_a_loader_serves_the_rows():
    batches = list(DataLoader(Indexed(TensorDataset(X, Y)), batch_size=3, shuffle=True))
    assert sorted(torch.cat([index for _, _, index in batches]).tolist()) == [0, 1, 2, 3, 4]
    for x, y, index in batches:
        assert index.dtype == torch.long
        assert torch.equal(x, X[index])
        assert torch.equal(y, Y[index])


def test_the_rows_are_those_of_the_wrapped_subset():
    outer = Indexed(Subset(Subset(TensorDataset(X, Y), [4, 2, 1]), [2, 0]))
    assert len(outer) == 2
    assert [(sample[1].item(), sample[2]) for sample in (outer[0], outer[1])] == [(1, 0), (0, 1)]
    assert outer.targets.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("sample", "expected"),
    [
        ((7, 1), (7, 1, 0)),
        ([7, 1], (7, 1, 0)),
        (7, (7, -100, 0)),
        ((7,), (7, -100, 0)),
        ({"x": 7, "y": 1}, {"x": 7, "y": 1, "index": 0}),
    ],
)
def test_every_form_of_sample_gets_its_row(sample, expected):
    assert Indexed(Listed([sample]))[0] == expected


def test_a_row_from_the_end_is_the_same_row():
    assert Indexed(Listed([(7, 1), (8, 0)]))[-1] == (8, 0, 1)


@pytest.mark.parametrize(
    ("sample", "words"), [((1, 2, 3), "got 3 parts"), ({"index": 4}, "have a 'index' already"), ({"idx": 4}, "'idx'")]
)
def test_a_sample_with_no_place_for_the_row_is_refused(sample, words):
    with pytest.raises(ValueError, match=words):
        Indexed(Listed([sample]))[0]


def test_a_data_set_without_rows_is_refused():
    class Stream(IterableDataset):
        def __iter__(self):
            return iter([1])

    with pytest.raises(TypeError, match="Stream is an IterableDataset"):
        Indexed(Stream())
    with pytest.raises(TypeError, match="indexed already"):
        Indexed(Indexed(TensorDataset(X)))
    with pytest.raises(TypeError, match="got SimpleNamespace"):
        Indexed(SimpleNamespace())


def test_a_batch_is_fetched_in_one_go_if_the_data_set_can():
    class Fast(Listed):
        def __getitems__(self, indices):
            self.asked = list(indices)
            return [self.samples[i] for i in indices]

    fast = Fast([(i, i % 2) for i in range(4)])
    assert Indexed(fast).__getitems__([3, 1]) == [(3, 1, 3), (1, 1, 1)]
    assert fast.asked == [3, 1]
    assert Indexed(Listed(fast.samples)).__getitems__([2, 0]) == [(2, 0, 2), (0, 0, 0)]


@pytest.mark.parametrize(
    ("dataset", "expected"),
    [
        (TensorDataset(X, Y), [3, 1, 2, 1, 0]),
        (TensorDataset(X), None),
        (TensorDataset(X, X), None),
        (Listed([0, 0], targets=[1, 0]), [1, 0]),
        (Listed([0, 0], labels=torch.tensor([1, 0], dtype=torch.uint8)), [1, 0]),
        (Listed([0, 0], targets=["cat", "dog"]), None),
        (Listed([0, 0], targets=[1, 0, 2]), None),
        (Listed([0, 0]), None),
        (Subset(Listed([0, 0], targets=[1, 5]), [1]), [5]),
        (Subset(Listed([0, 0]), [1]), None),
        (ConcatDataset([TensorDataset(X, Y), Listed([0], targets=[9])]), [3, 1, 2, 1, 0, 9]),
        (ConcatDataset([TensorDataset(X, Y), Listed([0])]), None),
        (Indexed(TensorDataset(X, Y)), [3, 1, 2, 1, 0]),
    ],
)
def test_the_classes_are_found_where_data_sets_keep_them(dataset, expected):
    found = targets_of(dataset)
    assert found is None if expected is None else found.tolist() == expected
    assert found is None or found.dtype == torch.long


def test_it_can_be_sent_to_a_worker():
    assert pickle.loads(pickle.dumps(Indexed(TensorDataset(X, Y))))[2][2] == 2
