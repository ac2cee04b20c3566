"""Several networks as one."""

import pytest
import torch
from torch import nn

from lightning_kd import DistillationModule
from lightning_kd.losses import KDLoss
from lightning_kd.teachers import Ensemble
from tests import support


class Answer(nn.Module):
    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def forward(self, x):
        return self.answer


ONE, TWO = torch.tensor([[0.0, 0.0], [1000.0, 0.0]]), torch.tensor([[2.0, 0.0], [0.0, 1000.0]])


def test_the_mean_of_the_probabilities_and_of_the_logits():
    members = [Answer(ONE), Answer({"logits": TWO})]
    expected = (ONE.softmax(1) + TWO.softmax(1)) / 2
    torch.testing.assert_close(Ensemble(members)(None).softmax(1), expected)
    torch.testing.assert_close(Ensemble(members, average="logits")(None), (ONE + TWO) / 2)


def test_what_cannot_be_averaged_is_refused():
    with pytest.raises(ValueError, match="at least one network"):
        Ensemble([])
    with pytest.raises(ValueError, match="'probabilities' or 'logits', got 'votes'"):
        Ensemble([Answer(ONE)], average="votes")
    with pytest.raises(ValueError, match=r"got \[\(2, 2\), \(2, 1\)\]"):
        Ensemble([Answer(ONE), Answer(ONE[:, :1])])(None)
    with pytest.raises(ValueError, match=r"got \[None\]"):
        Ensemble([Answer({})])(None)


def test_an_ensemble_teaches():
    teacher = Ensemble([support.teacher(), support.student()])
    module = DistillationModule(support.student(), teacher, [KDLoss()])
    trainer = support.fit(module, max_epochs=1)
    assert trainer.callback_metrics["train/kd"] > 0
