"""Attention losses on students with gradient checkpointing or compiled train as on the plain student."""

import copy
from functools import partial

import pytest
import torch

from lightning_kd import DistillationModule
from lightning_kd.losses import AttentionMatrixLoss, QKVRelationLoss
from tests.ecosystem.test_attention import fitted, pair

LOSSES = {
    "matrices": lambda: AttentionMatrixLoss("uniform"),
    "relations": lambda: QKVRelationLoss("last", relation_heads=2, relations={"QQ": 1.0, "VV": 1.0}),
}


def checkpointed(student):
    enable = getattr(student, "activation_checkpointing_enable", student.gradient_checkpointing_enable)
    enable({"use_reentrant": False})
    return student


CHANGES = {"checkpointing": checkpointed, "compiled": partial(torch.compile, backend="aot_eager")}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", ["bert", "llama"])
@pytest.mark.parametrize("loss", LOSSES)
def test_a_step_is_that_of_the_plain_student(loss, name, change):
    student, teacher, inputs, _ = pair(name)
    weights = []
    for make in (lambda net: net, CHANGES[change]):
        net = copy.deepcopy(student)
        module = DistillationModule(
            make(net), copy.deepcopy(teacher), [LOSSES[loss]()], optimizer=partial(torch.optim.SGD, lr=0.1)
        )
        fitted(module, inputs)
        weights.append(dict(net.named_parameters()))
    plain, changed = weights
    assert any(not torch.equal(value, plain[key]) for key, value in student.named_parameters())
    for key, value in plain.items():
        torch.testing.assert_close(changed[key], value, rtol=1e-6, atol=1e-6)
