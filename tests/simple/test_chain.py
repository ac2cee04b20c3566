"""Teacher assistants in one call: each link is the fit that `distill` makes of it, and the direct student another."""

import copy

import pytest
import torch
from torch import nn

from lightning_kd import distill, distill_chain
from lightning_kd.data import DigitsConvNet
from lightning_kd.losses import HintLoss, KDLoss
from tests import support
from tests.support import assert_same_weights

QUIET = {"enable_progress_bar": False, "accelerator": "cpu", "max_epochs": 2, "batch_size": 8}

# their teachers are small networks that were never trained, of which the doctor warns
pytestmark = pytest.mark.filterwarnings("ignore:None of the teacher's")


def networks():
    """A teacher, an assistant and a student."""
    return [support.seeded(lambda width=width: support.ConvNet(width), width) for width in (8, 5, 3)]


def data():
    return support.data().tensors


def test_every_link_is_the_fit_of_the_network_before_and_the_direct_one_that_of_the_teacher():
    teacher, assistant, student = networks()
    by_hand = [copy.deepcopy(one) for one in (assistant, student, student)]
    result = distill_chain([assistant, student], teacher, data(), data(), **QUIET)
    first = distill(by_hand[0], teacher, data(), data(), **QUIET)
    second = distill(by_hand[1], by_hand[0], data(), data(), **QUIET)
    directly = distill(by_hand[2], teacher, data(), data(), **QUIET)
    assert result.student is student
    assert result.links[0].student is assistant
    for found, expected in zip([*result.links, result.direct], (first, second, directly), strict=True):
        assert_same_weights(found.student, expected.student)
        assert found.metrics == expected.metrics
    assert not torch.equal(result.direct.student.head.weight, student.head.weight)


def test_the_table_tells_the_teacher_each_link_and_the_direct_student():
    teacher, assistant, student = networks()
    result = distill_chain([assistant, student], teacher, data(), data(), **QUIET)
    lines = str(result).splitlines()
    assert [line[:20].strip() for line in lines] == ["", "teacher", "assistant 1", "student", "student, directly"]
    assert f"{result.links[0].metrics['teacher_accuracy']:.4f}" in lines[1]
    assert f"{result.links[0].metrics['accuracy']:.4f}" in lines[2]
    assert f"{result.direct.metrics['accuracy']:.4f}" in lines[4]
    assert f"{sum(p.numel() for p in student.parameters()):,}" in lines[3]


def test_each_link_has_losses_of_its_own_and_no_direct_student_if_none_is_asked_for():
    teacher, assistant, student = networks()
    losses = [KDLoss(), HintLoss("features", "features")]
    result = distill_chain([assistant, student], teacher, data(), losses=losses, direct=False, **QUIET)
    assert result.direct is None
    assert not list(losses[1].parameters())  # which is built for neither
    built = [sum(p.numel() for p in link.module.losses.parameters()) for link in result.links]
    assert built[0] != built[1]
    assert "student, directly" not in str(result)


def test_the_teachers_own_classes_are_not_those_of_an_assistant():
    """A teacher of five classes, of which the data has four in another order."""
    order = [4, 0, 2, 1]
    teacher, assistant, student = networks()
    wide = support.seeded(lambda: support.ConvNet(8, 5), 1)
    with torch.no_grad():
        wide.load_state_dict({name: value for name, value in teacher.state_dict().items() if "head" not in name}, False)
    result = distill_chain([assistant, student], wide, data(), teacher_classes=order, direct=False, **QUIET)
    assert result.links[0].module.output_options.teacher_classes == order
    assert result.links[1].module.output_options.teacher_classes is None


def test_one_network_is_no_chain():
    with pytest.raises(ValueError, match="without an assistant use distill"):
        distill_chain([DigitsConvNet(width=2)], nn.Linear(2, 2), data())
