"""Classes that both networks leave out, and one logit without an axis of classes: right, or refused with the remedy."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from lightning_kd import DistillationCallback
from lightning_kd.losses import CTKDLoss, DKDLoss, KDLoss, MLKDLoss, NKDLoss, WSLDLoss
from tests import support

LEFT_OUT = torch.tensor([False, False, True, False])


class Masked(nn.Module):
    """Leaves the third class out."""

    def __init__(self, net, by):
        super().__init__()
        self.net, self.by = net, by

    def forward(self, x):
        return self.net(x).masked_fill(LEFT_OUT, self.by)


def fit(by, loss, door="module"):
    data = DataLoader([(torch.randn(1, 4, 4), (0, 1, 3)[i % 3]) for i in range(8)], 8)
    student, guide = Masked(support.student(), by), Masked(support.teacher(), by)
    made, callbacks = support.through(door, student, guide=guide, losses=[loss])
    return support.fit(made, train=data, callbacks=callbacks, max_epochs=1, limit_val_batches=0)


@pytest.mark.parametrize("door", ["module", "callback"])
@pytest.mark.parametrize("loss", [KDLoss, DKDLoss, NKDLoss, WSLDLoss, MLKDLoss, CTKDLoss])
def test_classes_that_are_marked_by_infinity_are_refused_with_the_remedy(door, loss):
    words = r"teacher's logits \(2 of 8 values\).*left out.*logits\.masked_fill\(mask, -1e4\)"
    with pytest.raises(ValueError, match=words):
        fit(-torch.inf, loss(), door)


def test_logits_that_are_no_number_are_not_taken_for_masked_classes():
    with pytest.raises(ValueError, match="Look at the weights"):
        fit(torch.nan, KDLoss())


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_remedy_gives_the_divergence_over_the_other_classes(temperature):
    masked = torch.randn(5, 4, generator=torch.Generator().manual_seed(1)), torch.randn(5, 4)
    s, t = (one[:, ~LEFT_OUT] / temperature for one in masked)
    by_hand = temperature**2 * (t.softmax(1) * (t.log_softmax(1) - s.log_softmax(1))).sum(1).mean()
    found = KDLoss(temperature)(*(one.masked_fill(LEFT_OUT, -1e4) for one in masked))
    torch.testing.assert_close(found, by_hand)


class OneNumber(nn.Module):
    """Returns one logit a sample, (B)."""

    def __init__(self, net):
        super().__init__()
        self.net, self.head = net, nn.Linear(support.CLASSES, 1)

    def forward(self, x):
        return self.head(self.net(x)).squeeze(1)


class Own(support.UserModule):
    def __init__(self, net):
        super().__init__(net)
        self.criterion = nn.BCEWithLogitsLoss()


class WithAxis(DistillationCallback):
    def logits_of(self, output):
        return output.unsqueeze(1)


@pytest.mark.parametrize("kind", [DistillationCallback, WithAxis])
def test_one_logit_without_an_axis_is_spoken_of_as_such(kind):
    data = DataLoader([(torch.randn(1, 4, 4), float(i % 2)) for i in range(8)], 8, collate_fn=collate)
    student, guide = OneNumber(support.student()), OneNumber(support.teacher())
    callback = kind(guide, [KDLoss(1.0, binary=True)], student="net")
    run = {"train": data, "callbacks": [callback], "max_epochs": 1, "limit_val_batches": 0}
    if kind is DistillationCallback:
        words = r"KDLoss: expected logits \(B, C\), got student \(2,\) and teacher \(2,\).*output\.unsqueeze\(1\)"
        with pytest.raises(ValueError, match=words):
            support.fit(Own(student), **run)
        return
    x = next(iter(data))[0]
    t = torch.distributions.Bernoulli(logits=guide.eval()(x).detach())
    s = torch.distributions.Bernoulli(logits=student.train()(x).detach())
    found = support.fit(Own(student), **run).callback_metrics["train/kd"]
    torch.testing.assert_close(found, torch.distributions.kl_divergence(t, s).mean())


def collate(rows):
    return torch.stack([x for x, _ in rows]), torch.tensor([y for _, y in rows])
