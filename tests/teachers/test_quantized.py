"""A teacher in int8: as near to the other one as told, with its layers, on the CPU alone."""

import pytest
import torch
from torch import nn

from lightning_kd.capture.call import Call
from lightning_kd.losses import HintLoss, KDLoss
from lightning_kd.teachers import QuantizedTeacher
from tests import support

X = support.data().tensors[0]


def test_its_distance_from_the_network_is_what_is_told(caplog):
    network = support.teacher()
    teacher = QuantizedTeacher(network)
    with caplog.at_level("INFO"):
        found = teacher.first_answer(None, Call(args=(X,))).output
    with torch.no_grad():
        exact = network.eval()(X)
    distance = ((found - exact).square().sum().sqrt() / exact.square().sum().sqrt()).item()
    assert 0 < distance < 0.05
    assert teacher.distance == pytest.approx(distance, rel=1e-5)
    agreement = (found.argmax(1) == exact.argmax(1)).double().mean().item()
    assert teacher.agreement == pytest.approx(agreement)
    assert f"is {distance:.2%} from the teacher ConvNet" in caplog.text


@pytest.mark.parametrize("door", ["module", "callback"])
def test_it_teaches_with_its_layers_and_the_network_stays(door):
    network = support.teacher().train()
    before = support.snapshot(network)
    teacher = QuantizedTeacher(network)
    made, callbacks = support.through(door, guide=teacher, losses=[KDLoss(), HintLoss("features", "features")])
    trainer = support.fit(made, callbacks=callbacks, max_epochs=1)
    assert trainer.callback_metrics["train/kd"].isfinite()
    support.assert_unchanged(network, before)
    assert network.training
    assert all(p.requires_grad for p in network.parameters())
    assert teacher.distance is not None


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_the_students_precision_does_not_reach_it(precision):
    made = support.module(teacher=QuantizedTeacher(support.teacher()), losses=[KDLoss()])
    support.fit(made, max_epochs=1, precision=precision)


def test_what_cannot_be_quantised_is_refused():
    with pytest.raises(ValueError, match=r"Linear layers, of which Conv2d has none"):
        QuantizedTeacher(nn.Conv2d(1, 2, 3))
    with pytest.raises(ValueError, match=r"has \['torch.bfloat16'\]; give it copy.deepcopy\(network\).float\(\)"):
        QuantizedTeacher(nn.Linear(2, 2).bfloat16())
    with pytest.raises(ValueError, match=r"the network Linear is on \['meta'\]"):
        QuantizedTeacher(nn.Linear(2, 2, device="meta"))


def test_another_device_of_the_student_is_refused():
    with pytest.raises(ValueError, match=r"runs on the CPU, but the student is on cuda"):
        QuantizedTeacher(nn.Linear(2, 2)).place(torch.device("cuda"))
