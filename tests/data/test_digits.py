"""The embedded data: the split, the hidden labels, the augmentation, and the networks' sizes."""

import sys

import pytest
import torch
from sklearn.datasets import load_digits

from lightning_kd.data import DigitsConvNet, DigitsDataModule
from tests import support


def ready(**options):
    digits = DigitsDataModule(**options)
    digits.setup()
    return digits


def test_the_halves_hold_every_image_once_and_every_digit_in_both_alike():
    digits = ready()
    rows = torch.cat([half.tensors[0] for half in (digits.train_set, digits.held_out_set)]).flatten(1)
    everything = torch.as_tensor(load_digits().data, dtype=torch.float32) / 16
    assert sorted(rows.tolist()) == sorted(everything.tolist())
    counts = [half.tensors[1].bincount(minlength=10) for half in (digits.train_set, digits.held_out_set)]
    assert (len(digits.train_set), len(digits.held_out_set)) == (898, 899)
    assert (counts[0] - counts[1]).abs().max() <= 1


def test_the_split_is_the_same_whatever_the_random_state():
    torch.manual_seed(1)
    first = ready().train_set.tensors[0]
    torch.manual_seed(2)
    assert torch.equal(first, ready().train_set.tensors[0])


def test_hidden_labels_leave_so_many_a_class_and_none_of_the_held_out_half():
    full, hidden = ready(), ready(labelled_per_class=5)
    target = hidden.train_set.tensors[1]
    assert target[target >= 0].bincount().tolist() == [5] * 10
    assert torch.equal(target[target >= 0], full.train_set.tensors[1][target >= 0])
    assert set(target[target < 0].tolist()) == {-100}
    assert (hidden.held_out_set.tensors[1] >= 0).all()
    other = ready(labelled_per_class=5, label_seed=1).train_set.tensors[1]
    assert not torch.equal(other, target)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch_size": 0}, "batch_size >= 1, got 0"),
        ({"num_workers": -1}, "num_workers >= 0, got -1"),
        ({"labelled_per_class": -1}, "labelled_per_class >= 0 or None for all labels, got -1"),
        ({"labelled_per_class": 88}, "labelled_per_class <= 87, .*got 88"),
    ],
)
def test_a_number_out_of_range_is_named(options, words):
    with pytest.raises(ValueError, match=words):
        ready(**options)


@pytest.mark.parametrize("option", ["width", "depth", "num_classes"])
def test_a_network_without_extent_is_refused(option):
    with pytest.raises(ValueError, match=f"expected {option} >= 1, got 0"):
        DigitsConvNet(**{option: 0})


def test_without_scikit_learn_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r'pip install "lightning_kd\[examples\]"'):
        ready()


def test_only_training_images_are_augmented():
    seen = {}

    class Look(support.UserModule):
        def training_step(self, batch, batch_idx):
            seen.setdefault("train", batch[0])
            return super().training_step(batch, batch_idx)

        def validation_step(self, batch, batch_idx):
            seen.setdefault("val", batch[0])

    digits = ready(batch_size=899)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    support.trainer(max_epochs=1, num_sanity_val_steps=0).fit(Look(net), datamodule=digits)
    known = {tuple(image.flatten().tolist()) for image in digits.train_set.tensors[0]}
    assert not any(tuple(image.flatten().tolist()) in known for image in seen["train"])
    assert torch.equal(seen["val"], digits.held_out_set.tensors[0])


def test_the_index_is_the_row_in_the_half():
    digits = ready(with_index=True)
    images, target, index = next(iter(digits.train_dataloader()))
    assert torch.equal(images, digits.train_set.tensors[0][index])
    assert torch.equal(target, digits.train_set.tensors[1][index])


@pytest.mark.parametrize(
    ("options", "parameters"),
    [({"width": 32, "depth": 2}, 288_170), ({}, 6_274), ({"width": 6}, 3_628), ({"width": 4}, 1_702)],
)
def test_the_networks_have_the_documented_sizes_and_maps(options, parameters):
    net = DigitsConvNet(**options).eval()
    assert sum(p.numel() for p in net.parameters()) == parameters
    shapes = {}
    for name in ("stage1", "stage2", "stage3", "embedding", "head"):
        net.get_submodule(name).register_forward_hook(lambda m, a, out, name=name: shapes.update({name: out.shape[1:]}))
    net(torch.zeros(2, 1, 8, 8))
    w = options.get("width", 8)
    assert [tuple(shape) for shape in shapes.values()] == [(w, 8, 8), (2 * w, 4, 4), (4 * w, 2, 2), (4 * w,), (10,)]
