"""Parts that do more than note their mode, such as adapters that merge their weights, are told of each change."""

import copy
from types import MethodType

import pytest
import torch
from torch import nn

from lightning_kd import DistillationCallback
from lightning_kd.capture.networks import copied, undisturbed
from lightning_kd.functional import kd_loss
from lightning_kd.losses import KDLoss
from lightning_kd.teachers import Ensemble
from tests import support


class Merging(nn.Module):
    """A low-rank adapter as loralib writes it: eval mode adds the adapter to the weight, training takes it out again.

    The numbers are powers of two, so that nothing is rounded by it.
    """

    def __init__(self):
        super().__init__()
        self.base = nn.Parameter(torch.tensor([[1.0, 0.5], [0.25, 2.0]]), requires_grad=False)
        self.adapter = nn.Parameter(torch.tensor([[0.5, 0.25], [0.125, 1.0]]))
        self.merged = False
        self.told = []

    def train(self, mode=True):
        super().train(mode)
        self.told.append(mode)
        if mode is self.merged:
            self.base.data += -self.adapter.data if mode else self.adapter.data
            self.merged = not mode
        return self

    def forward(self, x):
        return x @ (self.base if self.merged else self.base + self.adapter)


class Adapted(nn.Module):
    """A student whose last layer is an adapter."""

    def __init__(self):
        super().__init__()
        self.layer, self.merging = nn.Linear(16, 2), Merging()

    def forward(self, x):
        return self.merging(self.layer(x.flatten(1)))


def adapted():
    return support.seeded(Adapted, 5)


def guide():
    return support.teacher(2)


def two_classes():
    return [(x, y % 2) for x, y in support.loader()]


def by_hand(net, epochs):
    """Torch alone, with a validation after each epoch as Lightning has it, but whose end tells each part."""
    optimizer = torch.optim.SGD((p for p in net.parameters() if p.requires_grad), lr=0.1, momentum=0.9)
    teacher = guide().eval()
    for _ in range(epochs):
        for x, y in two_classes():
            with torch.no_grad():
                shown = teacher(x)
            logits = net(x)
            loss = nn.functional.cross_entropy(logits, y) + kd_loss(logits, shown, temperature=4.0)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        net.eval()
        net.train()
    return net


@pytest.mark.parametrize("validated", [False, True])
@pytest.mark.parametrize("door", ["module", "callback"])
def test_a_part_that_merges_its_weights_trains_as_by_hand(door, validated):
    net = adapted()
    made, callbacks = support.through(door, net, guide=guide(), losses=[KDLoss(temperature=4.0)])
    batches = support.batches(*two_classes())
    none = {} if validated else {"limit_val_batches": 0}
    support.fit(made, train=batches, val=batches, callbacks=callbacks, max_epochs=2, **none)
    expected = by_hand(adapted(), 2)
    net.train()
    expected.train()
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(net.state_dict()[name], value, rtol=0, atol=1e-6, msg=name)
    assert (net.merging.base == torch.tensor([[1.0, 0.5], [0.25, 2.0]])).all() or validated


def test_parts_are_told_once_more_the_mode_they_were_in():
    net = nn.Sequential(Merging(), Merging())
    net[1].eval()
    before = copy.deepcopy(net.state_dict())
    with undisturbed(net):
        assert net[0].merged
    assert (net[0].merged, net[1].merged, net[0].training, net[1].training) == (False, True, True, False)
    for name, value in before.items():
        assert torch.equal(net.state_dict()[name], value), name


class Overriding(support.UserModule):
    """Has a ``train`` of its own, through which every part inside is told as well."""

    def train(self, mode=True):
        return super().train(mode)


@pytest.mark.filterwarnings("ignore:Found 1 module")  # Lightning tells of what is frozen
def test_a_part_frozen_in_eval_mode_stays_so_after_a_validation():
    net = adapted()
    net.layer.eval()
    seen = []
    net.layer.register_forward_hook(lambda part, *_: seen.append((net.training, part.training)))
    made = Overriding(net)
    callback = DistillationCallback(guide(), [KDLoss()], student_calls="last")
    batches = support.batches(*two_classes())
    support.fit(made, train=batches, val=batches, callbacks=[callback], max_epochs=2)
    assert set(seen) == {(True, False), (False, False)}
    assert seen[-len(two_classes()) - 1] == (True, False)  # the last step, after one validation and before another


def test_members_of_an_ensemble_are_told_when_their_weights_have_been_found():
    members = [adapted(), adapted()]
    Ensemble(members).weigh_by_accuracy(two_classes())
    assert not any(member.merging.merged and member.merging.training for member in members)


def test_a_copy_of_a_traced_network_has_what_switches_its_mode():
    """Torch's own copy of a GraphModule leaves out the methods that torchao puts on the object."""

    def train(self, mode=True):
        self.meta["told"] = mode

    net = torch.fx.symbolic_trace(nn.Sequential(nn.Linear(2, 2)))
    net.train = MethodType(train, net)
    other = copied(net)
    other.train(False)
    assert (other.meta["told"], "told" in net.meta) == (False, False)
    assert other.get_submodule("0") is not net.get_submodule("0")
    assert "train" not in vars(copied(nn.Linear(2, 2)))
