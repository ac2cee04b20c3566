"""What the hooks record, and what they say of layers that they cannot read."""

import pytest
import torch
from torch import nn

from lightning_kd.capture import Capture


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.pair, self.unused = nn.Linear(2, 2), Pair(), nn.Linear(2, 2)
        self.odd = Odd()

    def forward(self, x):
        return self.layer(self.layer(x)) + self.pair(x)[0]


class Pair(nn.Module):
    def forward(self, x):
        return x + 1, x - 1


class Odd(nn.Module):
    def forward(self, x):
        return {"x": x}


def test_the_first_call_counts_and_a_layer_that_runs_twice_in_it_is_named():
    net, x = Twice(), torch.ones(1, 2)
    capture = Capture(net, ["layer", "pair"], "student")
    capture.attach()
    with capture.recording() as record:
        net(x)
        net(2 * x)
        assert torch.equal(record.features["layer"], net.layer(x))
        assert torch.equal(record.features["pair"], x + 1)
        assert record.args == (x,)
        with pytest.raises(RuntimeError, match=r"student layer\(s\) \['layer'\] ran more than once"):
            capture.check_ran(record)
    assert capture._store.record.features == {}
    capture.detach()
    assert not any(part._forward_hooks for part in net.modules())


def test_nothing_is_kept_outside_a_recording():
    net = Twice()
    capture = Capture(net, ["layer"], "student")
    capture.attach()
    net(torch.ones(1, 2))
    assert capture._store.record.features == {}


def test_an_unknown_layer_shows_the_nearest_names():
    with pytest.raises(ValueError, match=r"The student Twice has no layer 'layr'\. Nearest: layer"):
        Capture(Twice(), ["layr"], "student")
    with pytest.raises(ValueError, match=r"The teacher Twice has no layer 'zzz'\. It has: layer, pair, unused, odd"):
        Capture(Twice(), ["zzz"], "teacher")


def test_a_layer_that_did_not_run_is_named():
    net = Twice()
    capture = Capture(net, ["unused"], "teacher")
    capture.attach()
    with capture.recording() as record:
        net(torch.ones(1, 2))
        with pytest.raises(RuntimeError, match=r"teacher layer\(s\) \['unused'\] did not run"):
            capture.check_ran(record)


def test_a_layer_that_returns_no_tensor_is_named():
    net = Twice()
    capture = Capture(net, ["odd"], "student")
    capture.attach()
    with capture.recording() as record:
        net.odd(torch.ones(1, 2))
    with pytest.raises(TypeError, match=r"student layer 'odd' \(Odd\) returned a dict"):
        capture.check_ran(record)
