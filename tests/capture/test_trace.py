"""Which layers a loss reads that names none, through both doors and a checkpoint."""

import pytest
import torch
from torch import nn

from lightning_kd import DistillationCallback, DistillationModule
from lightning_kd.capture.trace import Trace
from lightning_kd.data import DigitsConvNet
from lightning_kd.engine.default_layers import choose_layers
from lightning_kd.losses import DistillationLoss, HintLoss
from tests import support


class Reader(DistillationLoss):
    def __init__(self, student=None, teacher=None, *, weight=1.0):
        super().__init__(student, teacher, weight=weight)

    def forward(self, student, teacher=None):
        return (student if isinstance(student, torch.Tensor) else student[0]).mean()


def traced(net, x):
    with Trace(net.eval()) as trace:
        logits = net(x)
    return trace.before(logits)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("embedding", "embedding"),
        ("map", "stage3"),
        ("maps", ["stage1", "stage2", "stage3"]),
        ("pre_activation_maps", ["stage1.norm", "stage2.norm", "stage3.norm"]),
    ],
)
def test_each_kind_is_the_layer_that_the_method_usually_reads(kind, expected):
    loss = type("ReaderOf", (Reader,), {"reads": kind})()
    x = torch.zeros(2, 1, 8, 8)
    choose_layers(loss, traced(DigitsConvNet(), x), traced(DigitsConvNet(width=4, depth=2), x))
    assert (loss.student, loss.teacher) == (expected, expected)


def test_networks_of_unequal_depth_are_matched_from_the_end():
    loss = type("ReaderOfMaps", (Reader,), {"reads": "maps"})()
    shallow = nn.Sequential(nn.Conv2d(1, 2, 3, stride=2, padding=1), nn.Flatten(), nn.Linear(32, 3))
    x = torch.zeros(2, 1, 8, 8)
    choose_layers(loss, traced(shallow, x), traced(DigitsConvNet(), x))
    assert (loss.student, loss.teacher) == (["0"], ["stage3"])


def test_a_network_without_such_a_layer_is_refused_with_the_remedy():
    loss = type("ReaderOfMap", (Reader,), {"reads": "map"})()
    flat = traced(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)), torch.zeros(2, 4))
    with pytest.raises(ValueError, match=r"names no layers, and the student has none.*Name them: ReaderOfMap\(student"):
        choose_layers(loss, flat, flat)


@pytest.mark.parametrize("door", ["module", "callback"])
def test_a_loss_without_names_trains_as_one_with_them(door):
    weights = []
    for names in ((), ("features", "features")):
        student, teacher = support.student(), support.teacher()
        torch.manual_seed(5)
        losses = [HintLoss(*names)]
        if door == "module":
            made, callbacks = DistillationModule(student, teacher, losses, task_loss=nn.CrossEntropyLoss()), []
        else:
            made, callbacks = support.UserModule(student), [DistillationCallback(teacher, losses)]
        support.fit(made, callbacks=callbacks, max_epochs=1)
        assert (losses[0].student, losses[0].teacher) == ("features", "features")
        weights.append(student.head.weight.detach().clone())
    assert torch.equal(*weights)


def test_the_chosen_layers_come_back_from_a_checkpoint(tmp_path):
    module = DistillationModule(support.student(), support.teacher(), [HintLoss()], task_loss=nn.CrossEntropyLoss())
    trainer = support.fit(module, max_epochs=1)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    again = DistillationModule.load_from_checkpoint(
        tmp_path / "last.ckpt", student=support.student(), teacher=support.teacher(), task_loss=nn.CrossEntropyLoss()
    )
    assert again.losses["hint"].student == "features"
    for name, value in module.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)


def test_a_checkpoint_names_the_layers_of_a_module_that_is_already_set_up(tmp_path):
    first = DistillationModule(support.student(), support.teacher(), [HintLoss()], task_loss=nn.CrossEntropyLoss())
    support.fit(first, max_epochs=1).save_checkpoint(tmp_path / "last.ckpt")
    second = DistillationModule(support.student(), support.teacher(), [HintLoss()], task_loss=nn.CrossEntropyLoss())
    trainer = support.trainer()
    trainer.validate(second, support.loader(), ckpt_path=tmp_path / "last.ckpt", weights_only=True)
    assert second.losses["hint"].teacher == "features"
    assert 0 <= trainer.callback_metrics["val/agreement"] <= 1
