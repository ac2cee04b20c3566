"""Batches whose labels are a dictionary for each image, as detectors take them, with a task of the student's own."""

import warnings

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from lightning_kd import DistillationModule
from lightning_kd.losses import HintLoss, KDLoss, TokenKDLoss
from tests import support

B, QUERIES, CLASSES = 4, 3, 5


class Detector(nn.Module):
    """Scores (B, queries, classes), and a loss of the labels."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(6, QUERIES * 8), nn.Linear(8, CLASSES)

    def forward(self, pixel_values, labels=None):
        logits = self.head(self.body(pixel_values).unflatten(1, (QUERIES, 8)))
        if labels is None:
            return {"logits": logits}
        first = torch.cat([one["class_labels"] for one in labels])
        return {"logits": logits, "loss": nn.functional.cross_entropy(logits[:, 0], first)}


def fit(losses):
    student, teacher = support.seeded(Detector, 1), support.seeded(Detector, 2)
    rows = [
        {"pixel_values": torch.randn(6, generator=torch.Generator().manual_seed(i)), "class": i % CLASSES}
        for i in range(B)
    ]

    def collate(some):
        return {
            "pixel_values": torch.stack([one["pixel_values"] for one in some]),
            "labels": [{"class_labels": torch.tensor([one["class"]])} for one in some],
        }

    sgd = lambda weights: torch.optim.SGD(weights, lr=0.0)  # noqa: E731
    module = DistillationModule(student, teacher, losses, task_loss="model", optimizer=sgd)
    loader = DataLoader(rows, batch_size=2, collate_fn=collate)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = support.fit(module, train=loader, val=loader, max_epochs=1)
    values = {name: float(value) for name, value in trainer.callback_metrics.items()}
    with torch.no_grad():
        batch = collate(rows)
        return values, student(**batch), teacher(**batch)


def test_a_loss_of_layers_trains_beside_the_students_own():
    values, ours, theirs = fit([HintLoss("body", "body")])
    assert values["val/loss"] == pytest.approx(float(ours["loss"]), rel=1e-5)
    alike = (ours["logits"].argmax(-1) == theirs["logits"].argmax(-1)).float().mean()
    assert values["val/agreement"] == pytest.approx(float(alike), rel=1e-5)


def test_a_loss_of_tokens_that_reads_no_labels_trains():
    values, ours, theirs = fit([TokenKDLoss(shift=False, tokens="mask")])
    q, p = (one["logits"].log_softmax(-1) for one in (ours, theirs))
    assert values["train/token_kd"] == pytest.approx(float((p.exp() * (p - q)).sum(-1).mean()), rel=1e-4)


def test_losses_that_cannot_are_refused_in_words():
    with pytest.raises(ValueError, match=r"token ids, one for each position \(2, 3\), got a list.*tokens='mask'"):
        fit([TokenKDLoss(shift=False)])
    with pytest.raises(ValueError, match=r"use TokenKDLoss"):
        fit([KDLoss()])
