"""A teacher of which only layers are read stops after the last of them, and nothing else changes."""

import pytest
import torch
from torch import nn

from lightning_kd import DistillationModule
from lightning_kd.losses import HintLoss, HybridLoss, KDLoss, SPLoss
from tests import support


class Counted(nn.Module):
    """Counts its calls."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return self.inner(x)


def guide():
    net = support.teacher()
    net.head = Counted(net.head)
    return net


def fitted(losses, net=None, door="module", **options):
    net = guide() if net is None else net
    module, callbacks = support.through(door, guide=net, losses=losses)
    before = net.head.calls
    trainer = support.fit(module, callbacks=callbacks, **{"limit_val_batches": 0, **options})
    student = module.student if isinstance(module, DistillationModule) else module.net
    weights = torch.cat([p.detach().flatten() for p in student.parameters()])
    return weights, net.head.calls - before, trainer


@pytest.mark.parametrize("door", ["module", "callback"])
def test_what_comes_after_the_last_layer_does_not_run(door):
    _, calls, trainer = fitted([HintLoss("features", "features")], door=door)
    assert trainer.global_step == 6
    assert calls <= 2  # at set-up, where every layer must be seen to run once


def test_the_student_is_that_of_a_teacher_which_runs_to_its_end(monkeypatch):
    def losses():
        return [HintLoss("features", "features"), SPLoss("features.0", "features.0")]

    stopped, calls, _ = fitted(losses())
    monkeypatch.setattr("lightning_kd.teachers.frozen.is_compiled", lambda _: True)
    whole, more, _ = fitted(losses())
    assert torch.equal(stopped, whole)
    assert more == calls + 6


@pytest.mark.parametrize(
    "losses",
    [
        lambda: [HintLoss("features", "features"), KDLoss()],
        lambda: [HybridLoss([HintLoss("features", "features"), KDLoss()])],
        lambda: [HintLoss("<output>", "<output>")],
    ],
    ids=["kd", "hybrid", "output"],
)
def test_a_teacher_whose_output_is_read_runs_to_its_end(losses):
    _, calls, _ = fitted(losses())
    assert calls >= 6


def test_an_evaluation_asks_the_whole_teacher():
    _, without, _ = fitted([HintLoss("features", "features")])
    _, calls, trainer = fitted([HintLoss("features", "features")], limit_val_batches=1.0)
    assert calls - without == 2 * 3
    assert "val/agreement" in trainer.callback_metrics


def test_a_compiled_teacher_runs_to_its_end():
    net = guide()
    net.features.compile(backend="eager")
    _, calls, _ = fitted([HintLoss("features", "features")], net)
    assert calls >= 6


def test_a_teacher_that_somebody_else_watches_runs_to_its_end():
    net, seen = guide(), []
    net.register_forward_hook(lambda *_: seen.append(1))
    fitted([HintLoss("features", "features")], net)
    assert len(seen) >= 6


def test_a_layer_that_was_changed_in_place_later_is_read_as_it_was():
    class Overwrites(support.ConvNet):
        def forward(self, x):
            features = self.features(x)
            logits = self.head(features.flatten(1))
            features.zero_()
            return logits

    net = support.seeded(lambda: Overwrites(8), 7)
    net.head = Counted(net.head)
    overwritten, _, _ = fitted([HintLoss("features", "features")], net)
    plain, _, _ = fitted([HintLoss("features", "features")])
    assert torch.equal(overwritten, plain)
