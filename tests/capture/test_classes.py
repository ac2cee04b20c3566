"""The refusal of other classes names what to write."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from lightning_kd import DistillationModule
from lightning_kd.capture.classes import class_order
from lightning_kd.losses import KDLoss
from tests import support


def named(*names, seed=0):
    net = support.seeded(lambda: nn.Linear(4, len(names)), seed)
    net.config = SimpleNamespace(id2label=dict(enumerate(names)))
    return net


@pytest.mark.filterwarnings("ignore:.*is left out")
def test_other_classes_are_refused_with_the_numbers_of_those_that_both_have():
    student, teacher = named("cat", "dog", "Emu"), named("emu", "fox", "dog", seed=1)
    with pytest.raises(ValueError, match=r"the student alone has \['cat'\], the teacher alone \['fox'\]") as told:
        class_order(student, teacher)
    assert "student.config.id2label = teacher.config.id2label" in str(told.value)
    assert "teacher_classes=[2, 0] with student_classes=[1, 2]" in str(told.value)
    remedy = {"teacher_classes": [2, 0], "student_classes": [1, 2]}
    module = DistillationModule(student, teacher, [KDLoss(1.0)], task_loss=nn.CrossEntropyLoss(), **remedy)
    x, y = torch.randn(6, 4), torch.tensor([0, 1, 2, 0, 1, 2])
    with torch.no_grad():
        mine, its = student(x)[:, [1, 2]].log_softmax(1), teacher(x)[:, [2, 0]].log_softmax(1)
        kl = (its.exp() * (its - mine)).sum(1).mean()
    data = support.batches((x, y))
    found = support.fit(module, train=data, val=data, max_epochs=1).callback_metrics["train/kd"]
    assert found.item() == pytest.approx(kl.item(), rel=1e-4)


def test_where_no_two_are_shared_or_there_are_many_the_option_is_named():
    for mine, its in ((("a", "b"), ("b", "c")), (("a", "b"), ("c", "d"))):
        with pytest.raises(ValueError, match=r"teacher_classes=\[\.\.\.\]"):
            class_order(named(*mine), named(*its))
    many = [f"c{i}" for i in range(40)]
    with pytest.raises(ValueError, match=r"teacher_classes=\[\.\.\.\]") as told:
        class_order(named(*many, "x"), named(*many, "y"))
    assert len(str(told.value)) < 500
