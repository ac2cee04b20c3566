"""Only the training steps that the Trainer makes are counted; another call of ``training_step`` spoils nothing."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback
from torch import nn
from torch.utils.data import DataLoader

from lightning_kd import DistillationCallback, DistillationModule
from lightning_kd.data import Indexed
from lightning_kd.functional import kd_loss
from lightning_kd.losses import CRDLoss, HintLoss, HybridLoss, KDLoss, MGDLoss
from tests import support
from tests.support import StagedNet

DOORS = ["module", "callback"]


def make(width):
    return support.seeded(partial(StagedNet, width, norm=False), width)


def rows(seed):
    data = support.data(20, seed)
    return Indexed(data, targets=data.tensors[1])


def floats(metrics):
    return {name: float(value) for name, value in metrics.items()}


class Validating(support.UserModule):
    """Validates by its training step, as many people do, or by its own words."""

    by_training_step = True
    rate = 0.1

    def training_step(self, batch, batch_idx):
        return self.criterion(self.net(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        if self.by_training_step:
            loss = self.training_step(batch, batch_idx)
        else:
            loss = self.criterion(self.net(batch[0]), batch[1])
        self.log("val_loss", loss, batch_size=len(batch[0]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.net.parameters(), lr=self.rate)


def validated(by_training_step, loss):
    made = Validating(make(3))
    made.by_training_step = by_training_step
    callback = DistillationCallback(make(6), [loss()])
    train, val = DataLoader(rows(0), batch_size=8, shuffle=True), DataLoader(rows(1), batch_size=8)
    options = {"val_check_interval": 1, "num_sanity_val_steps": 2, "callbacks": [callback]}
    return made, callback, support.fit(made, train=train, val=val, **options)


LOSSES = {
    "kd": KDLoss,
    "mgd": partial(MGDLoss, "stage1", "stage1"),
    "crd": partial(CRDLoss, "embedding", "embedding", negatives=6),
}


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_a_validation_by_the_training_step_is_the_users_own_step(loss):
    (found, its, by), (written, own, plain) = validated(True, loss), validated(False, loss)
    support.assert_same_weights(found, written)
    support.assert_same_weights(its.losses, own.losses)
    assert floats(by.callback_metrics) == floats(plain.callback_metrics)
    assert {"val/agreement", "val/teacher_accuracy"} <= set(by.callback_metrics)
    x, y = (torch.stack(part) for part in list(zip(*(rows(1)[i][:2] for i in range(20)), strict=True)))
    with torch.no_grad():
        assert float(by.callback_metrics["val_loss"]) == pytest.approx(F.cross_entropy(found.net(x), y).item())


class Probe(Callback):
    """Asks for the training step's loss of other data, at a moment of its own."""

    def __init__(self, moment, data):
        self.data, self.values = data, []
        setattr(self, moment, self.look)

    def look(self, trainer, pl_module, *_):
        loss = pl_module.training_step(self.data, 0)
        if loss.requires_grad:
            assert all(g.isfinite().all() for g in torch.autograd.grad(loss, (*self.weights(pl_module),)))
        self.values.append(loss.item())

    def weights(self, pl_module):
        return (pl_module.student if isinstance(pl_module, DistillationModule) else pl_module.net).parameters()


def still(door, losses, guide):
    """A module that does not learn, so that every batch is seen by the same weights."""
    if door == "callback":
        made = Validating(make(3))
        made.rate = 0.0
        return made, [DistillationCallback(guide, losses)]
    optimizer = partial(torch.optim.SGD, lr=0.0)
    return DistillationModule(make(3), guide, losses, task_loss=nn.CrossEntropyLoss(), optimizer=optimizer), []


MOMENTS = ["on_train_batch_end", "on_before_backward", "on_train_epoch_end", "on_validation_epoch_end"]


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("door", DOORS)
def test_a_call_by_somebody_else_is_not_among_the_means_of_training(door, moment):
    student, guide = make(3), make(6)
    made, callbacks = still(door, [KDLoss()], guide)
    other = next(iter(DataLoader(rows(1), batch_size=8)))
    probe = Probe(moment, other)
    data = DataLoader(rows(0), batch_size=8)
    fitted = support.fit(made, train=data, val=data, callbacks=[*callbacks, probe])
    x, y = (torch.stack(part) for part in list(zip(*(rows(0)[i][:2] for i in range(20)), strict=True)))
    with torch.no_grad():
        task, kd = F.cross_entropy(student(x), y), kd_loss(student(x), guide(x), temperature=4.0)
        own = F.cross_entropy(student(other[0]), other[1])
        whole = own + kd_loss(student(other[0]), guide(other[0]), temperature=4.0)
    assert float(fitted.callback_metrics["train/task"]) == pytest.approx(task.item(), rel=1e-5)
    assert float(fitted.callback_metrics["train/kd"]) == pytest.approx(kd.item(), rel=1e-5)
    # the callback adds to the steps of the training; the module's own step is the whole loss at any time
    expected = own if door == "callback" and moment == "on_validation_epoch_end" else whole
    assert probe.values == pytest.approx([expected.item()] * len(probe.values), rel=1e-5)
    assert probe.values


def balanced():
    return HybridLoss([KDLoss(), HintLoss("stage1", "stage1")], balance="magnitude", momentum=0.5)


@pytest.mark.parametrize("loss", [LOSSES["crd"], balanced], ids=["banks", "means"])
@pytest.mark.parametrize("door", DOORS)
def test_a_call_by_somebody_else_leaves_the_memory_of_the_losses_alone(door, loss):
    def memory(callbacks):
        losses = [support.seeded(loss, 5)]
        made, own = still(door, losses, make(6))
        train = DataLoader(rows(0), batch_size=8)
        support.fit(made, train=train, val=train, max_epochs=1, callbacks=[*own, *callbacks])
        return losses[0]

    other = next(iter(DataLoader(rows(0), batch_size=8, shuffle=True)))
    found, expected = memory([Probe("on_train_batch_end", other)]), memory([])
    assert {"student_bank", "means"} & set(expected.state_dict())
    support.assert_same_weights(found, expected)
