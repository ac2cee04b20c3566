"""Random generators of the user's own draw in a fit what they would draw without the look before it."""

import random
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningDataModule
from torch import nn

from lightning_kd import Batch, DistillationCallback, DistillationModule
from lightning_kd.losses import HintLoss, KDLoss
from tests import support
from tests.support import StagedNet


class Draws:
    """Draws from generators of its own, which somebody holds."""

    def __init__(self):
        self.of_torch = torch.Generator().manual_seed(0)
        self.of_numpy = {"new": np.random.default_rng(0), "old": np.random.RandomState(0)}
        self.of_python = random.Random(0)
        self.drawn = []

    def __call__(self):
        numbers = [torch.rand((), generator=self.of_torch).item(), self.of_python.random()]
        numbers += [self.of_numpy["new"].random(), self.of_numpy["old"].random_sample()]
        self.drawn.append(numbers)
        return sum(numbers)


def expected(count):
    draws = Draws()
    for _ in range(count):
        draws()
    return draws.drawn


class Noisy(StagedNet):
    """Adds noise of its own in each call while it trains or not."""

    def __init__(self, width):
        super().__init__(width, norm=False)
        self.stage1.noise = Draws()

    def forward(self, x):
        return super().forward(x + self.stage1.noise())


class Mixing(support.UserModule):
    """Draws in its step before the student is called, and in its hook for batches."""

    def __init__(self, net):
        super().__init__(net)
        self.in_step, self.in_hook = Draws(), Draws()

    def on_after_batch_transfer(self, batch, dataloader_idx):
        return [batch[0] + self.in_hook(), batch[1]]

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.net(batch[0] + self.in_step()), batch[1])


def alone(losses):
    made = Mixing(support.seeded(partial(Noisy, 3), 3))
    callbacks = [DistillationCallback(support.seeded(partial(StagedNet, 6), 6), losses)] if losses else []
    support.fit(made, callbacks=callbacks, limit_val_batches=0)
    return made


@pytest.mark.parametrize("loss", [KDLoss, partial(HintLoss, "stage1", "stage1")], ids=["kd", "hint"])
def test_a_callback_without_weight_changes_nothing(loss):
    found, plain = alone([loss(weight=0.0)]), alone([])
    assert plain.in_step.drawn[-6:] == expected(6)
    for one in (found, plain):
        assert one.in_step.drawn[-6:] == one.in_hook.drawn[-6:] == one.net.stage1.noise.drawn[-6:] == expected(6)
    support.assert_same_weights(found, plain)


class Unpacking(DistillationModule):
    """Draws when it takes a batch apart."""

    def unpack_batch(self, batch):
        return Batch(args=(batch[0] + self.draws(),), target=batch[1])


class Shifting(LightningDataModule):
    """Draws in its hook for batches."""

    def __init__(self):
        super().__init__()
        self.draws = Draws()

    def train_dataloader(self):
        return support.loader()

    def on_after_batch_transfer(self, batch, dataloader_idx):
        return [batch[0] + self.draws(), batch[1]]


@pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no")
def test_a_module_takes_batches_apart_by_the_first_draws():
    optimizer = partial(torch.optim.SGD, lr=0.1)
    net, guide = (support.seeded(partial(Noisy, width), width) for width in (3, 6))
    made = Unpacking(net, guide, [KDLoss()], task_loss=nn.CrossEntropyLoss(), optimizer=optimizer)
    made.draws = Draws()
    data = Shifting()
    support.trainer().fit(made, datamodule=data)
    for draws in (made.draws, data.draws, net.stage1.noise, guide.stage1.noise):
        assert draws.drawn[-6:] == expected(6)
