"""A batch is taken apart once a step, since taking it apart may draw: mixup, cropping, dropped words."""

import warnings

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_kd import DistillationCallback, DistillationModule
from lightning_kd.losses import DKDLoss, KDLoss
from tests import support
from tests.support import CLASSES


class Drawing(DistillationModule):
    """Shuffles the rows of each batch as it takes the batch apart."""

    def unpack_batch(self, batch):
        x, y = batch
        order = torch.randperm(len(x))
        self.reads.append(order)
        return super().unpack_batch((x[order], y[order]))


class Recorded(DKDLoss):
    """Keeps the logits and targets that it compares."""

    def forward(self, student, teacher, target):
        self.seen.append((student.detach().clone(), target.clone()))
        return super().forward(student, teacher, target)


def labelled_by_sign():
    """Samples whose class is their position in the batch, and can be seen from the sample itself."""
    x = torch.arange(8.0).repeat(3)[:, None]
    return DataLoader(TensorDataset(x, x[:, 0].long() % CLASSES), batch_size=8)


class Position(nn.Module):
    """A network whose logits show which sample it saw."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return 2.0 * self.scale * nn.functional.one_hot(x[:, 0].long() % CLASSES, CLASSES)


def test_student_and_losses_get_the_same_draw():
    loss = Recorded()
    loss.seen = []
    made = Drawing(Position(), Position(), losses=[loss], task_loss=nn.CrossEntropyLoss())
    made.reads = []
    trainer = support.trainer(max_epochs=2, limit_val_batches=0)
    trainer.fit(made, labelled_by_sign(), labelled_by_sign())
    before_the_fit = len(made.reads) - trainer.global_step
    assert before_the_fit <= 3, "for the sizes, for what the target is, and to see whether the task has one"
    steps = loss.seen[-trainer.global_step :]
    assert len(steps) == 6
    for logits, target in steps:
        assert torch.equal(logits.argmax(1), target)


@pytest.mark.parametrize("calls", ["each", "first"])
def test_the_callback_reads_once_a_step_however_often_the_student_is_called(calls):
    class Twice(support.UserModule):
        def training_step(self, batch, batch_idx):
            self.net(batch[0])
            return super().training_step(batch, batch_idx)

    class Reading(DistillationCallback):
        def unpack_batch(self, batch):
            self.reads += 1
            return super().unpack_batch(batch)

    callback = Reading(support.teacher(), [DKDLoss()], student_calls=calls)
    callback.reads = 0
    trainer = support.fit(Twice(support.student()), callbacks=[callback], limit_val_batches=0)
    before_the_fit = 1  # for what the target is
    assert callback.reads == before_the_fit + trainer.global_step


def test_the_callback_does_not_read_a_batch_that_no_loss_asks_for():
    class Strange(DistillationCallback):
        def unpack_batch(self, batch):
            raise AssertionError("no loss needs a target or a row")

    callback = Strange(support.teacher(), [KDLoss()])
    support.fit(support.UserModule(support.student()), callbacks=[callback], limit_val_batches=0)


@pytest.mark.parametrize("dtype", ["bfloat16", torch.bfloat16, "float32", None])
def test_a_format_of_the_teacher_means_the_same_through_both_doors(dtype):
    ends = []
    for door in ("module", "callback"):
        if door == "module":
            made, callbacks = support.module(losses=[KDLoss()], teacher_dtype=dtype), []
            net = made.student
        else:
            callbacks = [DistillationCallback(support.teacher(), [KDLoss()], teacher_dtype=dtype)]
            made = support.UserModule(support.student())
            net = made.net
        support.fit(made, callbacks=callbacks)
        ends.append(net)
    support.assert_same_weights(*ends)


@pytest.mark.parametrize("door", ["module", "callback"])
def test_a_format_that_is_none_is_refused_through_both_doors(door):
    make = DistillationModule if door == "module" else DistillationCallback
    parts = (support.student(), support.teacher()) if door == "module" else (support.teacher(),)
    with pytest.raises(ValueError, match=r"float32, bfloat16 or float16, got 'bf17'"):
        make(*parts, [KDLoss()], teacher_dtype="bf17")


@pytest.mark.parametrize("door", ["module", "callback"])
def test_a_resumed_fit_leaves_the_filters_of_warnings_as_they_were(door, tmp_path):
    made, callbacks = support.through(door)
    support.fit(made, callbacks=[*callbacks, support.SaveEveryStep(tmp_path)])
    made, callbacks = support.through(door)
    before = list(warnings.filters)
    trainer = support.fit(made, callbacks=callbacks, ckpt_path=tmp_path / "2.ckpt")
    assert warnings.filters == before
    assert "reset" not in vars(trainer.fit_loop.epoch_loop)
