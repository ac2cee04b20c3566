"""A step under the callback that reorders the batch is refused where losses read the target or the row."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from lightning_kd import DistillationCallback
from lightning_kd.data import Indexed
from lightning_kd.losses import CRDLoss, DKDLoss, KDLoss
from tests import support
from tests.support import UserModule

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step`")
LOSSES = {
    "crd": lambda: CRDLoss("features", "features", dim=4, negatives=8),
    "dkd": lambda: DKDLoss(),
    "kd": lambda: KDLoss(),
}


def fit(name, prepare, door=DistillationCallback):
    class Preparing(UserModule):
        def training_step(self, batch, batch_idx):
            x, y = prepare(batch[0], batch[1])
            return self.criterion(self.net(x), y)

    data = support.data() if name != "crd" else Indexed(support.data())
    callback = door(support.teacher(), [LOSSES[name]()])
    trainer = support.trainer(max_epochs=1, callbacks=[callback], limit_val_batches=0)
    trainer.fit(Preparing(support.student()), DataLoader(data, 8))
    return trainer.global_step


def turned(x, y):
    return x.flip(0), y.flip(0)


def exchanged(x, y):
    order = [1, 0, *range(2, len(x))]
    return x[order], y[order]


def late(x, y):
    """The two samples of the look keep their order."""
    return (x.roll(1, 0), y.roll(1, 0)) if len(x) == 8 else (x, y)


@pytest.mark.parametrize("name", ["crd", "dkd"])
@pytest.mark.parametrize("prepare", [turned, exchanged, late])
def test_samples_in_another_order_are_refused(name, prepare):
    with pytest.raises(ValueError, match=r"mixed or reordered the samples.*unpack_batch"):
        fit(name, prepare)


@pytest.mark.parametrize("prepare", [turned, late])
def test_a_loss_that_reads_neither_trains(prepare):
    assert fit("kd", prepare) == 3


@pytest.mark.parametrize(
    "prepare",
    [lambda x, y: (x, y), lambda x, y: (x.clone(), y), lambda x, y: (x.to(memory_format=torch.channels_last), y)],
    ids=["as it is", "a copy", "another layout"],
)
@pytest.mark.parametrize("name", ["crd", "dkd"])
def test_the_values_of_the_batch_train(name, prepare):
    assert fit(name, prepare) == 3


@pytest.mark.parametrize(
    "prepare",
    [
        lambda x, y: ((x - 0.5) / 2, y),
        lambda x, y: (x.flip(3), y),
        lambda x, y: (x * 0.7 + x.flip(0) * 0.3, y),
        lambda x, y: (nn.functional.dropout(x), y),
        lambda x, y: (x.mul_(0.7).add_(x.flip(0).mul_(0.3)), y),
    ],
    ids=["normalised", "mirrored", "mixed", "noisy", "mixed in place"],
)
@pytest.mark.parametrize("name", ["crd", "dkd"])
def test_other_values_are_refused_until_the_callback_says_that_the_order_is_kept(name, prepare):
    """The rows of mixed samples have no place in the batch any more, and nobody can tell these from the others."""
    with pytest.raises(ValueError, match=r"changes values alone and keeps the order"):
        fit(name, prepare)

    class Trusting(DistillationCallback):
        def unpack_batch(self, batch):
            return super().unpack_batch(batch)

    assert fit(name, prepare, Trusting) == 3
