"""Fits in two threads of one process may share a teacher: each gets its own answers."""

import threading
import time
from functools import partial

import pytest
import torch
from lightning.pytorch import Callback
from torch import nn

from lightning_kd.capture.call import Call
from lightning_kd.losses import ATLoss, KDLoss
from lightning_kd.teachers.frozen import FrozenTeacher
from tests import support

DOORS = ["module", "callback"]


class Slow(support.ConvNet):
    """Waits in the middle of each call, where another thread may call it."""

    def forward(self, x):
        features = self.features(x)
        time.sleep(0.02)
        return self.head(features.flatten(1))


def in_threads(*works):
    """Do things at the same time; raise what one of them has raised."""
    failed = []

    def safely(work):
        try:
            work()
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=safely, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    if failed:
        raise failed[0]


def test_two_that_share_a_network_get_their_own_answers():
    net, answers = support.seeded(lambda: Slow(8), 7), {}
    teachers = [FrozenTeacher(net), FrozenTeacher(net)]
    for teacher in teachers:
        teacher.watch(["features"])
        teacher.attach()
    inputs = [torch.full((2, 1, 4, 4), float(i)) for i in range(2)]

    def ask(i):
        answers[i] = teachers[i].answer(None, Call(args=(inputs[i],)))

    in_threads(partial(ask, 0), partial(ask, 1))
    for i, x in enumerate(inputs):
        assert torch.equal(answers[i].features["features"], net.features(x))
        assert torch.equal(answers[i].output, net(x))


class Together(Callback):
    """Lets one fit after the other come to its training, since Lightning replaces methods of a class in set-up."""

    def __init__(self, turn, barrier):
        self.turn, self.barrier = turn, barrier

    def on_train_start(self, *_):
        self.turn.release()
        self.barrier.wait(30)


@pytest.mark.parametrize("door", DOORS)
def test_two_fits_with_one_teacher_give_what_they_give_one_after_the_other(door):
    guide, turn, barrier = support.seeded(lambda: Slow(8), 7), threading.Lock(), threading.Barrier(2)

    def fit(net, callbacks=(), wait=None):
        losses = [KDLoss(), ATLoss("features", "features")]  # which draw no weights
        made, door_callbacks = support.through(door, net, guide=guide, losses=losses)
        options = {"max_epochs": 2, "limit_val_batches": 0, "callbacks": [*door_callbacks, *callbacks]}
        if wait is not None:
            wait.acquire()
        support.trainer(**options).fit(made, support.loader(), support.loader())

    def nets():
        return [support.seeded(partial(support.ConvNet, width), 3) for width in (3, 4)]

    expected, found = nets(), nets()
    for net in expected:
        fit(net)
    in_threads(*(partial(fit, net, [Together(turn, barrier)], turn) for net in found))
    for net, other in zip(found, expected, strict=True):
        support.assert_same_weights(net, other)
    assert isinstance(guide, nn.Module)
    assert not guide.features._forward_hooks
