"""What a network counts and keeps when it is called is as it would be without the look at the first samples."""

from functools import partial

import pytest
import torch
from torch import nn

from lightning_kd.capture.attributes import keeping_attributes
from lightning_kd.losses import HintLoss
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
