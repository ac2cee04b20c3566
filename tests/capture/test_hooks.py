"""What the hooks record, and what they say of layers that they cannot read."""

import pytest
import torch
from torch import nn

from lightning_kd.capture.hooks import Capture
from lightning_kd.capture.rehearsal import inputs_of


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
    assert capture._store.call.features == {}
    capture.detach()
    assert not any(part._forward_hooks for part in net.modules())


def test_nothing_is_kept_outside_a_recording():
    net = Twice()
    capture = Capture(net, ["layer"], "student")
    capture.attach()
    net(torch.ones(1, 2))
    assert capture._store.call.features == {}


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


@pytest.mark.parametrize(("calls", "scales"), [("first", [2.0]), ("last", [4.0]), ("each", [2.0, 3.0, 4.0])])
def test_every_call_that_counts_has_its_own_input_output_and_layers(calls, scales):
    net = nn.Sequential(nn.Identity(), nn.Linear(2, 2))
    capture = Capture(net, ["0"], "student", calls=calls)
    capture.attach()
    with capture.recording():
        with torch.no_grad():
            net(torch.ones(1, 2))
        outputs = {scale: net(torch.full((1, 2), scale)) for scale in (2.0, 3.0, 4.0)}
        with torch.no_grad():
            net(torch.zeros(1, 2))
        records = capture.counting_calls()
    assert [float(record.features["0"][0, 0]) for record in records] == scales
    assert [float(record.args[0][0, 0]) for record in records] == scales
    assert all(record.output is outputs[scale] for record, scale in zip(records, scales, strict=True))


def test_several_calls_are_refused_and_without_gradients_each_counts():
    net = nn.Linear(2, 2)
    capture = Capture(net, [], "student")
    capture.attach()
    with capture.recording(), pytest.raises(RuntimeError, match="did not call the student"):
        capture.counting_calls()
    with torch.no_grad(), capture.recording():
        net(torch.ones(1, 2))
        assert len(capture.counting_calls()) == 1
        net(torch.ones(1, 2))
        with pytest.raises(RuntimeError, match=r"called the student 2 times.*student_calls='first'"):
            capture.counting_calls()


def test_a_stage_without_the_student_takes_what_it_would_be_called_with_for_training():
    net, x = nn.Linear(2, 2), torch.ones(1, 2)

    def step():
        with torch.no_grad():
            net(x)
        return net(2 * x)

    assert torch.equal(inputs_of(net, step).args[0], 2 * x)
    assert not net._forward_pre_hooks
