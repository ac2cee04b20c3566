"""Losses that read the network's output as an embedding tell the metrics that it is one, where no task says more."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_kd import DistillationCallback, DistillationModule
from lightning_kd.losses import EmbeddingLoss, HybridLoss, InfoNCELoss, KDLoss, PKTLoss, RKDLoss, SPLoss
from tests import support

X = torch.randn(12, 6, generator=torch.Generator().manual_seed(0))
IDS = torch.arange(12) % 8
OUTPUT = ("<output>", "<output>")
LOSSES = {
    "rkd": lambda: RKDLoss(*OUTPUT),
    "pkt": lambda: PKTLoss(*OUTPUT),
    "sp": lambda: SPLoss(*OUTPUT),
    "info_nce": lambda: InfoNCELoss(*OUTPUT, dim=4),
    "embedding": lambda: EmbeddingLoss(*OUTPUT),
    "hybrid": lambda: HybridLoss([RKDLoss(*OUTPUT), SPLoss(*OUTPUT)]),
}


def net(seed, width=8):
    return support.seeded(lambda: nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, width)), seed)


class Own(LightningModule):
    """A step whose loss tells nothing of classes."""

    def __init__(self, network):
        super().__init__()
        self.net = network

    loss = staticmethod(lambda output, target: output.square().mean())

    def training_step(self, batch, batch_idx):
        return self.loss(self.net(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.loss(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


class Classifies(Own):
    loss = staticmethod(F.cross_entropy)


def logged(door, losses, task_loss=None, own=Own, teacher=None):
    student, teacher = net(1), net(2) if teacher is None else teacher
    if door == "module":
        sgd = lambda weights: torch.optim.SGD(weights, lr=0.0)  # noqa: E731
        module, callbacks = DistillationModule(student, teacher, losses, task_loss=task_loss, optimizer=sgd), []
    else:
        module, callbacks = own(student), [DistillationCallback(teacher, losses)]
    loader = DataLoader(TensorDataset(X, IDS), batch_size=4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = support.fit(module, callbacks=callbacks, train=loader, val=loader, max_epochs=1)
    return {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")}


def of_outputs(values):
    return {name for name in values if any(word in name for word in ("agreement", "accuracy", "cosine"))}


@pytest.mark.parametrize("door", ["module", "callback"])
@pytest.mark.parametrize("loss", LOSSES)
def test_the_output_is_measured_as_an_embedding(door, loss):
    values = logged(door, [LOSSES[loss]()])
    assert of_outputs(values) == {"val/cosine_to_teacher"}
    with torch.no_grad():
        expected = F.cosine_similarity(net(1)(X), net(2)(X)).mean()
    assert values["val/cosine_to_teacher"] == pytest.approx(float(expected), rel=1e-5)


def test_embeddings_of_other_widths_agree_in_nothing():
    assert of_outputs(logged("module", [RKDLoss(*OUTPUT)], teacher=net(2, 5))) == set()


@pytest.mark.parametrize("door", ["module", "callback"])
def test_a_task_or_a_loss_of_classes_says_that_these_are_scores(door):
    classes = {"val/accuracy", "val/teacher_accuracy", "val/agreement"}
    task = logged(door, [RKDLoss(*OUTPUT)], task_loss=nn.CrossEntropyLoss(), own=Classifies)
    assert of_outputs(task) >= classes - {"val/accuracy"}
    for losses in ([RKDLoss(*OUTPUT), KDLoss()], [RKDLoss("1", "1")]):
        assert "val/agreement" in of_outputs(logged(door, losses))
