"""Networks, modes, hooks, random states and Ctrl-C are afterwards what they were before."""

import os
import random
import signal

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from torch import nn

from lightning_kd import distill
from tests import support

QUIET = {"enable_progress_bar": False, "accelerator": "cpu", "max_epochs": 2, "batch_size": 8}

# their teachers are small networks that were never trained, of which the doctor warns
pytestmark = pytest.mark.filterwarnings("ignore:None of the teacher's")


class Watch(Callback):
    """Notes the modes of the student's parts in training, and may do something after the first batch."""

    def __init__(self, student, then=lambda: None):
        self.student, self.then, self.modes = student, then, None

    def on_train_batch_end(self, *_):
        self.modes = modes_of(self.student)
        self.then()


def modes_of(network):
    return {name: part.training for name, part in network.named_modules()}


def state_of(*networks):
    """All of a network but its weights, and the random states."""
    return [
        *([modes_of(one), {name: p.requires_grad for name, p in one.named_parameters()}] for one in networks),
        [len(part._forward_hooks) + len(part._forward_pre_hooks) for one in networks for part in one.modules()],
        [torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()],
        signal.getsignal(signal.SIGINT),
    ]


def partly_frozen():
    """A student whose first convolution is frozen, and whose BatchNorm is kept in eval mode."""
    student = support.student()
    student.features[0].requires_grad_(False)
    student.features[1].eval()
    return student


def test_parts_that_are_frozen_stay_so():
    student = partly_frozen()
    before, conv = modes_of(student), student.features[0].weight.clone()
    statistics = student.features[1].running_mean.clone()
    watch = Watch(student)
    result = distill(student, support.teacher(), support.data(), callbacks=[watch], **QUIET)
    assert watch.modes == before
    assert result.choices[0] == "Parts of the student stay in eval mode: 'features.1'."
    assert torch.equal(student.features[0].weight, conv)
    assert torch.equal(student.features[1].running_mean, statistics)
    assert [p.requires_grad for p in student.features[0].parameters()] == [False, False]


def test_a_student_in_eval_mode_is_trained_but_for_its_frozen_parts_and_told():
    student = support.student().eval()
    student.features[1].requires_grad_(False)
    watch = Watch(student)
    result = distill(student, support.teacher(), support.data(), callbacks=[watch], **QUIET)
    assert [name for name, mode in watch.modes.items() if not mode] == ["features.1"]
    assert result.choices[0] == (
        "The student was in eval mode, and trains in training mode. Parts of it stay in eval mode: 'features.1'."
    )
    assert not any(modes_of(student).values())


def fail():
    raise ZeroDivisionError


@pytest.mark.parametrize(
    ("then", "error"),
    [(lambda: os.kill(os.getpid(), signal.SIGINT), KeyboardInterrupt), (fail, ZeroDivisionError)],
    ids=["Ctrl-C", "error"],
)
def test_a_call_that_ends_early_leaves_all_but_the_student_s_weights(then, error):
    student, teacher = partly_frozen().eval(), support.teacher().train()
    teacher.features[0].eval()
    weights, before = support.snapshot(teacher), state_of(student, teacher)
    with pytest.raises(error):
        distill(student, teacher, support.data(), callbacks=[Watch(student, then)], **QUIET)
    assert state_of(student, teacher) == before
    support.assert_unchanged(teacher, weights)


def test_what_is_refused_leaves_all_as_it_was():
    student, teacher = support.student().eval(), support.teacher().train()
    before = state_of(student, teacher)
    with pytest.raises(ValueError, match="what the task is cannot be told"):
        distill(student, teacher, (torch.zeros(8, 1, 4, 4), torch.full((8,), 99)), **QUIET)
    with pytest.raises(TypeError, match="which cannot be told apart"):
        distill(student, teacher, [1, 2], **QUIET)
    assert state_of(student, teacher) == before


def test_an_exit_that_is_no_interrupt_goes_on():
    student = support.student()

    def leave():
        raise SystemExit(3)

    with pytest.raises(SystemExit, match="3"):
        distill(student, support.teacher(), support.data(), callbacks=[Watch(student, leave)], **QUIET)


def test_a_student_without_frozen_parts_says_only_its_mode():
    result = distill(nn.Linear(4, 3).eval(), nn.Linear(4, 3), torch.randn(16, 4), **QUIET)
    assert result.choices[0] == "The student was in eval mode, and trains in training mode."


@pytest.mark.filterwarnings("ignore::UserWarning")  # CPUs compute 16 bits slowly, which Lightning says
@pytest.mark.parametrize("precision", ["bf16-true", "bf16-mixed"])
def test_a_precision_of_the_trainer_rounds_no_weight_of_the_teacher(precision):
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(support.data().tensors[0][0].numel(), support.CLASSES))
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    distill(support.student(), teacher, support.data().tensors, precision=precision, **QUIET)
    torch.testing.assert_close(teacher.state_dict(), before, rtol=0, atol=0)
