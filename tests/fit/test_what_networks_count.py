"""What a network counts and keeps when it is called is as it would be without the look at the first samples."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.ao.quantization import DeQuantStub, QuantStub, get_default_qat_qconfig, prepare_qat

from lightning_kd import DistillationCallback
from lightning_kd.capture.attributes import keeping_attributes
from lightning_kd.functional import kd_loss
from lightning_kd.losses import HintLoss, KDLoss
from tests import support
from tests.support import StagedNet


class Counting(StagedNet):
    """Counts its calls in a number, a list, a dictionary and two buffers, and keeps what it saw first."""

    def __init__(self, width):
        super().__init__(width)
        self.calls, self.sizes, self.cache, self.first = 0, [], {}, None
        self.register_buffer("written", torch.zeros(()))
        self.register_buffer("replaced", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        self.sizes.append(len(x))
        self.cache.setdefault("size", len(x))
        self.first = x.detach() if self.first is None else self.first
        self.written += 1
        self.replaced = self.replaced + 1
        if not hasattr(self, "late"):
            self.late = self.calls
        return super().forward(x)


@pytest.mark.filterwarnings("ignore:The teacher Counting is frozen, but")  # its buffers do count
@pytest.mark.parametrize("door", ["module", "callback"])
def test_both_networks_count_the_batches_of_the_fit_alone(door):
    student, teacher = support.seeded(partial(Counting, 3), 3), support.seeded(partial(Counting, 6), 7)
    made, callbacks = support.through(door, student, guide=teacher, losses=[HintLoss("stage2", "stage2")])
    support.fit(made, callbacks=callbacks, max_epochs=1, limit_val_batches=0)
    for net in (student, teacher):
        assert (net.calls, net.sizes, net.cache, net.late) == (3, [8, 8, 8], {"size": 8}, 1)
        assert (net.written.item(), net.replaced.item(), len(net.first)) == (3, 3, 8)


class Growing(nn.Module):
    """Makes its layer at the first call, as networks do that do not know their input."""

    def __init__(self):
        super().__init__()
        self.made = False

    def forward(self, x):
        if not self.made:
            self.layer, self.made = nn.Linear(x.shape[1], 2), True
        return self.layer(x)


def test_a_part_that_has_made_its_layers_stays_made():
    net = Growing()
    with keeping_attributes([net]):
        net(torch.ones(1, 3))
    layer = net.layer
    net(torch.ones(1, 3))
    assert net.made
    assert net.layer is layer


class Recording(StagedNet):
    """Records what a stage returns by a hook that it puts there at the first call, and notes by a flag."""

    def __init__(self, width):
        super().__init__(width)
        self.calls, self.recorded = 0, []

    def forward(self, x):
        if not getattr(self, "hooks_are_there", False):
            self.stage1.register_forward_hook(lambda module, args, output: self.recorded.append(output.mean()))
            self.hooks_are_there = True
        self.calls += 1
        self.recorded.clear()
        return super().forward(x) + sum(self.recorded)


@pytest.mark.parametrize("door", ["module", "callback"])
def test_a_network_that_puts_hooks_on_its_parts_puts_them_there_once(door):
    student, teacher = support.seeded(partial(Recording, 3), 3), support.seeded(partial(Recording, 6), 7)
    made, callbacks = support.through(door, student, guide=teacher, losses=[HintLoss("stage2", "stage2")])
    support.fit(made, callbacks=callbacks, max_epochs=1, limit_val_batches=0)
    for net in (student, teacher):
        assert (net.calls, len(net.recorded)) == (3, 1)


class Toggling(support.UserModule):
    """Puts the network in training mode in each step, as after pseudo-labels that were made in eval mode."""

    def training_step(self, batch, batch_idx):
        self.net.eval()
        with torch.no_grad():
            self.net(batch[0])
        self.net.train()
        return super().training_step(batch, batch_idx)


def test_statistics_are_those_of_the_fit_where_the_step_chooses_the_mode():
    alone, beside = Toggling(support.student()), Toggling(support.student())
    support.fit(alone, max_epochs=1, limit_val_batches=0)
    callback = DistillationCallback(support.teacher(), [KDLoss(weight=0.0)], student_calls="last")
    support.fit(beside, callbacks=[callback], max_epochs=1, limit_val_batches=0)
    for name, value in alone.net.state_dict().items():
        assert torch.equal(beside.net.state_dict()[name], value), name


def quantized():
    """A network whose observers note the range of what they see, for training with fake quantisation."""
    net = support.seeded(lambda: nn.Sequential(QuantStub(), support.student(), DeQuantStub()), 0)
    net.qconfig = get_default_qat_qconfig("fbgemm")
    return prepare_qat(net.train())


class ByHand(support.UserModule):
    def __init__(self, net, guide):
        super().__init__(net)
        self.guide = [guide.eval()]

    def training_step(self, batch, batch_idx):
        with torch.no_grad():
            shown = self.guide[0](batch[0])
        logits = self.net(batch[0])
        return self.criterion(logits, batch[1]) + kd_loss(logits, shown, temperature=4.0)


@pytest.mark.filterwarnings("ignore")  # torch deprecates torch.ao, which people still train with
def test_observers_of_a_quantised_student_see_the_batches_of_the_fit_alone():
    by_hand, distilled = quantized(), quantized()
    support.fit(ByHand(by_hand, support.teacher()), max_epochs=1, limit_val_batches=0)
    support.fit(support.module(distilled, losses=[KDLoss(temperature=4.0)]), max_epochs=1, limit_val_batches=0)
    for name, value in by_hand.state_dict().items():
        assert torch.equal(distilled.state_dict()[name], value), name
