"""Nothing global is different after a call, whether it returns or raises."""

import copy
import logging
import os
import random
import sys
import warnings
from contextlib import contextmanager

import jsonargparse
import numpy as np
import pytest
import torch
import torch._dynamo.eval_frame
from torch import nn

from lightning_kd import export_student
from lightning_kd.capture.hooks import Capture
from lightning_kd.capture.networks import undisturbed
from lightning_kd.capture.no_trace import leaving_no_trace
from lightning_kd.capture.rehearsal import inputs_of
from lightning_kd.commands.export import export
from lightning_kd.commands.fit import DistillationCLI
from lightning_kd.files.reading import load_plain
from lightning_kd.files.weights import from_checkpoint, materialize


def global_state():
    """Everything that a library might leave changed in the process."""
    name, keys, *rest = np.random.get_state()
    return {
        "warnings": list(warnings.filters),
        "torch's random state": torch.get_rng_state().tolist(),
        "python's random state": random.getstate(),
        "numpy's random state": (name, keys.tolist(), *rest),
        "default format": torch.get_default_dtype(),
        "default device": str(torch.get_default_device()),
        "gradients": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "autocast": [(torch.is_autocast_enabled(d), torch.get_autocast_dtype(d)) for d in ("cpu", "cuda")],
        "compiler": repr(torch._dynamo.eval_frame._stance),
        "threads": torch.get_num_threads(),
        "deterministic": (torch.are_deterministic_algorithms_enabled(), torch.get_float32_matmul_precision()),
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "path": list(sys.path),
        "logging": (logging.root.level, list(logging.root.handlers), logging.root.manager.disable),
        "jsonargparse": copy.deepcopy(getattr(jsonargparse._common, "parsing_settings", None)),
    }


@contextmanager
def unchanged():
    before = global_state()
    try:
        yield
    finally:
        after = global_state()
        assert [name for name in before if before[name] != after[name]] == []


class Draws(nn.Module):
    """A network that draws random numbers, and fails if it is asked to."""

    def __init__(self, fails=False):
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.fails = fails

    def forward(self, x):
        torch.rand(1), random.random(), np.random.rand()
        if self.fails:
            raise RuntimeError("The network fails.")
        return self.layer(x)


def draw_and_fail():
    Draws(fails=True)(torch.ones(1, 3))


def test_the_snapshot_sees_what_it_names():
    with pytest.raises(AssertionError, match="torch's random state"), unchanged():
        torch.rand(1)
    with warnings.catch_warnings(), pytest.raises(AssertionError, match="warnings"), unchanged():
        warnings.simplefilter("ignore")


@pytest.mark.parametrize("fails", [False, True])
def test_a_network_is_called_undisturbed(fails):
    net = Draws(fails).train()
    with unchanged():
        try:
            with undisturbed(net):
                net(torch.ones(1, 3))
        except RuntimeError:
            assert fails
    assert net.training
    assert net.layer.training


def test_the_error_inside_of_an_undisturbed_block_is_the_one_that_is_raised():
    with pytest.raises(RuntimeError, match=r"^The network fails\.$") as caught, undisturbed(nn.Identity()):
        draw_and_fail()
    assert caught.value.__cause__ is None
    assert caught.traceback[-1].name == "forward"


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_step_that_leaves_no_trace_may_fail(error):
    net = nn.Linear(1, 1)

    def step():
        with leaving_no_trace(net):
            net.added = 1
            raise error

    with unchanged(), pytest.raises(error):
        step()
    assert not hasattr(net, "added")


def test_the_inputs_of_a_student_are_found_or_not():
    net = nn.Linear(1, 1)
    with unchanged():
        assert inputs_of(net, lambda: net(torch.ones(1, 1))).args
        with pytest.raises(ValueError, match="did not call the student"):
            inputs_of(net, lambda: None)
    assert not net._forward_pre_hooks


def test_a_capture_leaves_nothing():
    net = nn.Sequential(nn.Linear(1, 1))
    with unchanged():
        capture = Capture(net, ["0"], role="student")
        capture.attach()
        with pytest.raises(RuntimeError, match="changed"), capture.recording():
            raise RuntimeError("changed")
        capture.detach()


@pytest.mark.parametrize("suffix", ["pt", "safetensors", "pt2", "onnx"])
def test_an_export_returns(suffix, tmp_path):
    net = nn.Sequential(nn.Linear(3, 3), nn.Dropout(), nn.Linear(3, 2))
    export_student(net, tmp_path / f"warm.{suffix}", example=torch.ones(2, 3))  # what torch sets up at its first export
    with unchanged():
        export_student(net, tmp_path / f"a.{suffix}", example=torch.ones(2, 3))


@pytest.mark.parametrize(("fails", "size"), [(True, 3), (False, 4)])
def test_an_export_raises(fails, size, tmp_path):
    net = Draws(fails)
    with unchanged(), pytest.raises(ValueError, match="Draws does not take the example"):
        export_student(net, tmp_path / "a.pt2", example=torch.ones(2, size))


def test_files_are_read_or_refused(tmp_path):
    net = nn.Linear(1, 1)
    torch.save(net.state_dict(), tmp_path / "good.pt")
    torch.save(print, tmp_path / "bad.pt")
    torch.save(print, tmp_path / "protocol.pt", pickle_protocol=4)  # torch warns of it
    with torch.device("meta"):
        empty = nn.Linear(1, 1)
    with unchanged():
        load_plain(tmp_path / "good.pt")
        from_checkpoint(net, tmp_path / "good.pt")
        materialize(empty, tmp_path / "good.pt", "cpu")
        for name in ("bad.pt", "protocol.pt"):
            with pytest.raises(ValueError, match=name):
                load_plain(tmp_path / name)
        with pytest.raises(FileNotFoundError):
            export([f"--checkpoint={tmp_path}/none.ckpt", f"--output={tmp_path}/a.pt"])
        with pytest.raises(ValueError, match="No weight in"):
            export([f"--checkpoint={tmp_path}/good.pt", f"--output={tmp_path}/a.pt"])


OPTIONS = ["--model.student=torch.nn.Linear", "--model.student.in_features=1", "--model.student.out_features=1"]


def test_a_command_line_in_python_returns(tmp_path):
    quiet = ["--seed_everything=false", "--trainer.logger=false", f"--trainer.default_root_dir={tmp_path}"]
    quiet += ["--trainer.accelerator=cpu", "--data=DigitsDataModule", "--model.task_loss=torch.nn.CrossEntropyLoss"]
    torch.manual_seed(0)
    with unchanged_but_for_the_weights():
        cli = DistillationCLI(args=[*OPTIONS, *quiet], run=False)
    assert type(cli.model.student) is nn.Linear


@contextmanager
def unchanged_but_for_the_weights():
    """The weights of the student are drawn as they are in any script."""
    with unchanged():
        states = torch.get_rng_state(), random.getstate(), np.random.get_state()
        yield
        torch.set_rng_state(states[0])
        random.setstate(states[1])
        np.random.set_state(states[2])


def test_a_command_line_in_python_raises(capsys):
    with unchanged(), pytest.raises(SystemExit):
        DistillationCLI(args=["--model.no_such_option=1"], run=False)
    with unchanged(), pytest.raises(SystemExit):
        DistillationCLI(args=["--model.student=os.system", "--data=DigitsDataModule"], run=False)
    assert "os.system" in capsys.readouterr().err
