"""A stand-in for the part of torchvision that reads CIFAR-100: noise of the same shapes and types, few images."""

import sys
import types

import numpy
import pytest

TRAIN, HELD_OUT = 16, 6
calls = []


class CIFAR100:
    """Has the arguments and the two attributes of torchvision's class that the data module uses."""

    def __init__(self, root, train=True, transform=None, target_transform=None, download=False):
        calls.append({"root": root, "train": train, "download": download})
        count = TRAIN if train else HELD_OUT
        noise = numpy.random.default_rng(int(train))
        self.data = noise.integers(0, 256, (count, 32, 32, 3), dtype=numpy.uint8)
        self.targets = [(7 * row + 3) % 100 for row in range(count)]


@pytest.fixture
def fake_torchvision(monkeypatch):
    """Put the stand-in where the data module looks for torchvision; returns the list of its calls."""
    package, datasets = types.ModuleType("torchvision"), types.ModuleType("torchvision.datasets")
    package.datasets, datasets.CIFAR100 = datasets, CIFAR100
    monkeypatch.setitem(sys.modules, "torchvision", package)
    monkeypatch.setitem(sys.modules, "torchvision.datasets", datasets)
    calls.clear()
    return calls
