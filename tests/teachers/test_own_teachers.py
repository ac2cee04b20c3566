"""A teacher is whoever answers a call: here one that looks its answers up, through both doors."""

import pytest
import torch
from torch.utils.data import DataLoader

from lightning_kd import DistillationCallback
from lightning_kd.capture.call import Call
from lightning_kd.data import Indexed
from lightning_kd.losses import HintLoss, KDLoss
from lightning_kd.teachers import Teacher
from tests import support


class LookedUp(Teacher):
    """Knows the answers of a network to every row, and runs nothing."""

    def __init__(self, network, data):
        x = data.tensors[0]
        network.eval()
        with torch.no_grad():
            self.features = torch.cat([network.features(row[None]) for row in x])
            self.logits = torch.cat([network(row[None]) for row in x])
        self.watched = []
        self.asked = 0

    def watch(self, layers):
        self.watched = list(layers)

    def answer(self, batch, call):
        self.asked += 1
        rows = batch[2]
        return Call(output=self.logits[rows], features=dict.fromkeys(self.watched, self.features[rows]))


def fitted(door, teacher, losses):
    train, val = (DataLoader(Indexed(support.data()), batch_size=8, shuffle=shuffle) for shuffle in (True, False))
    if door == "module":
        made, callbacks = support.module(teacher=teacher, losses=losses), []
    else:
        made = support.UserModule(support.student())
        callbacks = [DistillationCallback(teacher, losses)]
    support.fit(made, callbacks=callbacks, train=train, val=val)
    return made.student if door == "module" else made.net


@pytest.mark.parametrize("door", ["module", "callback"])
def test_stored_answers_teach_what_the_network_teaches(door):
    def losses():
        return [KDLoss(temperature=2.0), HintLoss("features", "features")]

    stored = LookedUp(support.teacher(), support.data())
    one, other = fitted(door, support.teacher(), losses()), fitted(door, stored, losses())
    assert stored.watched == ["features"]
    assert stored.asked > 6
    for expected, got in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("door", ["module", "callback"])
@pytest.mark.parametrize("option", [{"teacher_dtype": "bfloat16"}, {"teacher_weights": "a.safetensors"}])
def test_an_option_without_effect_is_refused(door, option):
    stored = LookedUp(support.teacher(), support.data())
    make = support.module if door == "module" else lambda **options: DistillationCallback(losses=[KDLoss()], **options)
    with pytest.raises(ValueError, match="have no effect on a LookedUp; leave them out"):
        make(teacher=stored, **option)
