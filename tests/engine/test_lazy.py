"""Lazy layers get their weights from the look at the data, or are refused with the remedy."""

import re

import pytest
import torch
from torch import nn
from torch.nn.parameter import is_lazy

from lightning_kd.losses import HintLoss, KDLoss, MutualLearning
from lightning_kd.projectors import Projector
from lightning_kd.teachers import Ensemble
from tests import support

DOORS = ["module", "callback"]


def says(*words):
    return ".*".join(re.escape(word) for word in words)


class Lazy(nn.Module):
    """Learns the widths of its inputs from its first batch."""

    def __init__(self, width):
        super().__init__()
        self.features = nn.Sequential(nn.LazyConv2d(width, 3, padding=1), nn.LazyBatchNorm2d(), nn.ReLU())
        self.head = nn.LazyLinear(support.CLASSES)

    def forward(self, x):
        return self.head(self.features(x).flatten(1))


LOSSES = {
    "logits": lambda: [KDLoss()],
    "named layers": lambda: [HintLoss("features", "features")],
    "default layers": lambda: [KDLoss(), HintLoss()],
}


@pytest.mark.parametrize("losses", LOSSES)
@pytest.mark.parametrize("door", DOORS)
def test_a_lazy_student_trains_from_its_first_step(door, losses):
    net = Lazy(3)
    made, callbacks = support.through(door, net, losses=LOSSES[losses]())
    trainer = support.fit(made, callbacks=callbacks, max_steps=1, max_epochs=-1)
    assert not any(is_lazy(p) for p in net.parameters())
    held = {id(p) for group in trainer.optimizers[0].param_groups for p in group["params"]}
    assert {id(p) for p in net.parameters()} <= held
    assert all(p in trainer.optimizers[0].state for p in net.parameters())  # each has got a gradient
    assert net.head.weight.shape == (support.CLASSES, 48)


def test_a_lazy_student_trains_in_a_loop_of_ones_own():
    net = Lazy(3)
    made = support.module(net, losses=[KDLoss(), HintLoss()])
    batch = next(iter(support.loader()))
    made.prepare(batch)
    optimizer = made.configure_optimizers()
    before = net.head.weight.detach().clone()
    made.training_step(batch, 0).backward()
    optimizer.step()
    assert not torch.equal(net.head.weight, before)


@pytest.mark.parametrize("guide", [lambda: Lazy(8), lambda: Ensemble([support.teacher(), Lazy(8)])])
@pytest.mark.parametrize("door", DOORS)
def test_a_lazy_teacher_has_nothing_to_teach(door, guide):
    with pytest.raises(ValueError, match=says("The teacher", "lazy layers", "no weights", "Call it once on a batch")):
        support.through(door, guide=guide(), losses=[KDLoss()])


@pytest.mark.parametrize("door", DOORS)
def test_a_lazy_teacher_that_was_called_teaches(door):
    guide = Lazy(8)
    guide(torch.zeros(2, 1, 4, 4))
    made, callbacks = support.through(door, guide=guide)
    support.fit(made, callbacks=callbacks, max_epochs=1)


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("losses", LOSSES)
def test_a_lazy_layer_that_is_not_called_is_named(door, losses):
    net = Lazy(3)
    net.unused = nn.LazyLinear(3)
    made, callbacks = support.through(door, net, losses=LOSSES[losses]())
    with pytest.raises(ValueError, match=says("Lazy layers of the student", "'unused.weight'", "before the fit")):
        support.fit(made, callbacks=callbacks)


@pytest.mark.parametrize("door", DOORS)
def test_lazy_peers_are_refused_with_the_remedy(door):
    made, callbacks = support.through(door, losses=[MutualLearning([Lazy(4)])])
    with pytest.raises(
        ValueError, match=says("Lazy layers of part 'mutual_learning'", "peers.0.head.weight", "before the fit")
    ):
        support.fit(made, callbacks=callbacks)


class LazyProjector(Projector):
    """A projector of one's own that leaves its width open."""

    def make_layers(self, student_shape, teacher_shape):
        self.conv = nn.LazyConv2d(teacher_shape[1], 1)

    def forward(self, student):
        return self.conv(student)


@pytest.mark.parametrize("door", DOORS)
def test_a_lazy_projector_is_refused_with_the_remedy(door):
    made, callbacks = support.through(door, losses=[HintLoss("features", "features", projector=LazyProjector())])
    with pytest.raises(ValueError, match=says("Lazy layers of part 'hint'", "weight", "give those layers their sizes")):
        support.fit(made, callbacks=callbacks)
