"""Maps whose classes are on the last axis: refused where a loss reads them on axis 1, and right once they are moved."""

from functools import partial

import pytest
import torch
from torch import nn

from lightning_kd import DistillationCallback, DistillationModule
from lightning_kd.functional import kd_loss
from lightning_kd.losses import DISTLoss, HintLoss, KDLoss, MultiLabelKDLoss, RegressionKDLoss
from tests import support

SAID = r"reads the classes on axis 1, but the {}'s outputs \(6, 4, 4, 4\) have them last.*movedim"


class Last(nn.Module):
    """Scores (B, H, W, C) of H = W = C, so that no shape tells which axis is which."""

    def __init__(self, width):
        super().__init__()
        self.body, self.head = nn.Conv2d(3, width, 3, padding=1), nn.Linear(width, 4)

    def forward(self, x):
        return self.head(self.body(x).relu().movedim(1, -1))


class First(Last):
    def forward(self, x):
        return super().forward(x).movedim(-1, 1)


def pixels():
    return torch.randn(6, 3, 4, 4, generator=torch.Generator().manual_seed(0))


def fit(student, teacher, losses, door="module", base=DistillationModule):
    networks = support.seeded(partial(student, 3), 1), support.seeded(partial(teacher, 5), 2)
    if door == "module":
        module, callbacks = base(networks[0], networks[1], losses, optimizer=partial(torch.optim.SGD, lr=0.0)), []
    else:
        module, callbacks = Unlabelled(networks[0]), [DistillationCallback(networks[1], losses)]
    support.fit(module, train=support.batches(pixels()), callbacks=callbacks, max_epochs=1, limit_val_batches=0)
    return networks, module.trainer.callback_metrics


class Unlabelled(support.UserModule):
    def training_step(self, batch, batch_idx):
        return self.net(batch).square().mean()


@pytest.mark.parametrize("door", ["module", "callback"])
@pytest.mark.parametrize("loss", [KDLoss, DISTLoss, MultiLabelKDLoss])
@pytest.mark.parametrize(("student", "teacher", "role"), [(Last, Last, "student"), (First, Last, "teacher")])
def test_they_are_refused_with_the_remedy(door, loss, student, teacher, role):
    with pytest.raises(ValueError, match=SAID.format(role)):
        fit(student, teacher, [loss()], door)


def test_the_remedy_gives_the_right_number():
    class Moved(DistillationModule):
        def logits_of(self, output):
            return output.movedim(-1, 1)

    (student, teacher), logged = fit(Last, Last, [KDLoss()], base=Moved)
    with torch.no_grad():
        ours, theirs = (net(pixels()).reshape(-1, 4) for net in (student, teacher))
    right = 16 * nn.functional.kl_div((ours / 4).log_softmax(1), (theirs / 4).softmax(1), reduction="batchmean")
    assert logged["train/kd"].item() == pytest.approx(right.item(), rel=1e-4)


@pytest.mark.filterwarnings("ignore:.*left out")
@pytest.mark.parametrize("losses", [[RegressionKDLoss()], [HintLoss("body", "body")]], ids=["values", "layers"])
def test_losses_that_read_no_classes_are_not_refused(losses):
    fit(Last, Last, losses)


def test_maps_whose_classes_were_moved_in_the_network_are_right():
    (student, teacher), logged = fit(First, First, [KDLoss()])
    with torch.no_grad():
        right = kd_loss(student(pixels()), teacher(pixels()))
    assert logged["train/kd"].item() == pytest.approx(right.item(), rel=1e-4)
