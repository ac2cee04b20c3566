"""A teacher whose losses all have weight 0 is not asked: the run is the same, and costs what the student costs."""

import logging
from functools import partial

import pytest
import torch
from lightning.pytorch import Callback

from lightning_kd.losses import CRDLoss, HintLoss, HybridLoss, KDLoss
from lightning_kd.schedules import LinearSchedule, StepSchedule
from tests import support


class TeacherCalls(Callback):
    """Notes the steps in which a network is called."""

    def __init__(self, network):
        self.steps, self.step = [], None
        network.register_forward_hook(self.note)

    def note(self, *_):
        if self.step is not None:
            self.steps.append(self.step)

    def on_train_batch_start(self, trainer, *_):
        self.step = trainer.global_step

    def on_train_batch_end(self, *_):
        self.step = None


def falling():
    return LinearSchedule(1.0, 0.0, length=4, unit="step")


CASES = {
    "falls to zero": (lambda: [KDLoss(weight=falling()), HintLoss(weight=falling())], [0, 1, 2, 3]),
    "one stays": (lambda: [KDLoss(weight=falling()), HintLoss(weight=0.5)], [0, 1, 2, 3, 4, 5]),
    "comes later": (lambda: [KDLoss(weight=StepSchedule([0.0, 1.0], [2], unit="step"))], [2, 3, 4, 5]),
    "never": (lambda: [KDLoss(weight=0.0)], []),
    "a hybrid, which has means": (lambda: [HybridLoss([KDLoss(), HintLoss()], weight=falling())], [0, 1, 2, 3, 4, 5]),
    "a memory": (lambda: [CRDLoss("features", "features", dim=4, negatives=6, weight=0.0)], [0, 1, 2, 3, 4, 5]),
}


@pytest.mark.parametrize("door", ["module", "callback"])
@pytest.mark.parametrize("case", CASES)
def test_it_is_asked_only_where_a_loss_of_it_has_a_weight(case, door, caplog):
    losses, steps = CASES[case]
    guide, net = support.teacher(), support.student()
    made, callbacks = support.through(door, net, guide=guide, losses=losses())
    calls = TeacherCalls(guide)
    rows = support.Batches(list(support.loader()), dataset=support.data())
    if case == "a memory":
        rows = [(*batch, torch.arange(8) + 8 * i) for i, batch in enumerate(rows)]
        rows = support.Batches(rows, dataset=support.data())
    with caplog.at_level(logging.INFO):
        support.fit(made, train=rows, callbacks=[calls, *callbacks], limit_val_batches=0)
    assert calls.steps == steps
    assert ("have weight 0 now" in caplog.text) == (len(steps) < 6)


@pytest.mark.parametrize("case", ["falls to zero", "comes later"])
def test_the_student_learns_as_by_hand(case):
    net, guide = support.student(), support.teacher().eval()
    weights = {"falls to zero": [1.0, 0.75, 0.5, 0.25, 0.0, 0.0], "comes later": [0.0, 0.0, 1.0, 1.0, 1.0, 1.0]}[case]
    losses = [CASES[case][0]()[0]]
    batches = list(support.loader())
    support.fit(support.module(net, teacher=guide, losses=losses), train=support.Batches(batches), limit_val_batches=0)
    alone = support.student()
    optimizer = torch.optim.SGD(alone.parameters(), lr=0.1, momentum=0.9)
    softened = partial(torch.nn.functional.kl_div, reduction="batchmean", log_target=True)
    for weight, (x, y) in zip(weights, batches * 2, strict=True):
        logits = alone(x)
        with torch.no_grad():
            target = (guide(x) / losses[0].temperature).log_softmax(-1)
        kd = softened((logits / losses[0].temperature).log_softmax(-1), target) * losses[0].temperature ** 2
        loss = torch.nn.functional.cross_entropy(logits, y) + weight * kd
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for one, other in zip(net.parameters(), alone.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-6)
