"""Losses of samples on layers of tokens: how far a batch is padded beyond its longest text makes no difference."""

import pytest
import torch
from torch import nn

from lightning_kd import DistillationModule
from lightning_kd.losses import CCLoss, PKTLoss, RKDLoss, SPLoss
from tests import support

LENGTHS, C = (2, 5, 3), 2


class Texts(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(9, C)

    def forward(self, ids, attention_mask=None):
        found = self.embed(ids)
        return found.mean(1) if attention_mask is None else (found * attention_mask.unsqueeze(2)).sum(1)


def fit(loss, side, extra):
    generator = torch.Generator().manual_seed(3)
    size = max(LENGTHS) + extra
    ids, mask = torch.zeros(len(LENGTHS), size, dtype=torch.long), torch.zeros(len(LENGTHS), size, dtype=torch.long)
    for row, length in enumerate(LENGTHS):
        place = slice(0, length) if side == "right" else slice(size - length, size)
        ids[row, place] = torch.randint(1, 9, (length,), generator=generator)
        mask[row, place] = 1
    student, teacher = support.seeded(Texts, 1), support.seeded(Texts, 2)
    module = DistillationModule(student, teacher, [loss], optimizer=lambda p: torch.optim.SGD(p, lr=0.0))
    loader = support.batches({"ids": ids, "attention_mask": mask})
    logged = support.fit(module, train=loader, max_epochs=1, limit_val_batches=0).callback_metrics
    padded = [net.embed(ids).detach() * mask.unsqueeze(2) for net in (student, teacher)]
    return float(logged["train/loss"]), padded


def moments(student, teacher):
    """By hand, of rows that are as long as the longest text."""
    student, teacher = student.flatten(1).double(), teacher.flatten(1).double()
    width = max(LENGTHS) * C
    means = (student.mean(0) - teacher.mean(0)).square().sum() / width
    covariances = [(one - one.mean(0)).T @ (one - one.mean(0)) / len(one) for one in (student, teacher)]
    return (means + (covariances[0] - covariances[1]).square().sum() / width**2).item()


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("extra", [0, 3, 9])
def test_moments_are_those_of_the_longest_text(side, extra):
    found, padded = fit(PKTLoss("embed", "embed", mode="moments"), side, extra)
    assert found == pytest.approx(moments(*padded), rel=1e-5)


@pytest.mark.parametrize("make", [PKTLoss, SPLoss, RKDLoss, CCLoss, lambda *n: PKTLoss(*n, mode="mmd")])
def test_the_others_do_not_see_the_padding(make):
    few, more = (fit(make("embed", "embed"), "right", extra)[0] for extra in (0, 6))
    assert more == pytest.approx(few, rel=1e-3)
