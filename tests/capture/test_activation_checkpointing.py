"""Students that recompute their activations in the backward pass train as those that keep them, or are refused."""

import re
from functools import partial

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from lightning_kd import DistillationCallback, DistillationModule
from lightning_kd.losses import HintLoss, KDLoss
from tests import support

DOORS = ["module", "callback"]


def policy(context, op, *args, **kwargs):
    keep = op is torch.ops.aten.convolution.default
    return CheckpointPolicy.MUST_SAVE if keep else CheckpointPolicy.PREFER_RECOMPUTE


KINDS = {
    "reentrant": {"use_reentrant": True},
    "plain": {"use_reentrant": False},
    "selective": {
        "use_reentrant": False,
        "context_fn": partial(create_selective_checkpoint_contexts, policy),
    },
}


class Net(nn.Module):
    """Recomputes its body, or the whole of itself, if asked to."""

    def __init__(self, width=3, kind=None, whole=False, dropout=0.0):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1), nn.ReLU(), nn.Dropout(dropout), nn.Conv2d(width, width, 3, padding=1)
        )
        self.head = nn.Linear(width * 16, support.CLASSES)
        self.kind, self.whole = kind, whole

    def forward(self, x):
        if not self.training or self.kind is None or not torch.is_grad_enabled():
            return self._head(self.body(x))
        x = x.requires_grad_() if self.kind == "reentrant" else x
        if self.whole:
            return checkpoint(lambda x: self._head(self.body(x)), x, **KINDS[self.kind])
        return self._head(checkpoint(self.body, x, **KINDS[self.kind]))

    def _head(self, x):
        return self.head(x.relu().flatten(1))


class Outside(support.UserModule):
    """Checkpoints the call of the whole student, in its training step."""

    def __init__(self, net, kind):
        super().__init__(net)
        self.kind = kind

    def training_step(self, batch, batch_idx):
        x = batch[0].requires_grad_() if self.kind == "reentrant" else batch[0]
        return self.criterion(checkpoint(self.net, x, **KINDS[self.kind]), batch[1])


def fitted(door, net, layer, wrap=support.UserModule):
    """Fit and return how often a model's output was asked for its logits."""
    guide = support.seeded(partial(Net, 5), 7)
    parts = [KDLoss(temperature=2.0), HintLoss(layer, layer, weight=2.0)]
    asked = []

    class Counting:
        def logits_of(self, output):
            asked.append(1)
            return super().logits_of(output)

    torch.manual_seed(5)
    if door == "module":
        door_class = type("Module", (Counting, DistillationModule), {})
        options = {"task_loss": nn.CrossEntropyLoss(), "optimizer": partial(torch.optim.SGD, lr=0.1)}
        made, callbacks = door_class(net, guide, parts, **options), []
    else:
        made, callbacks = wrap(net), [type("Callback", (Counting, DistillationCallback), {})(guide, parts)]
    support.fit(made, callbacks=callbacks, limit_val_batches=0)
    return len(asked)


def student(**options):
    return support.seeded(partial(Net, dropout=0.3, **options), 3)


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("kind", ["plain", "selective"])
@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("layer", ["body.0", "body.3", "body", "head"])
def test_it_trains_as_without_and_asks_as_often(door, kind, whole, layer):
    one, two = student(), student(kind=kind, whole=whole)
    asked = [fitted(door, net, layer) for net in (one, two)]
    assert asked[0] == asked[1]
    support.assert_same_weights(one, two)


@pytest.mark.parametrize("kind", ["plain", "selective"])
@pytest.mark.parametrize("layer", ["body.0", "body", "head"])
def test_a_training_step_may_checkpoint_the_whole_student(kind, layer):
    one, two = student(), student()
    asked = [fitted("callback", one, layer), fitted("callback", two, layer, partial(Outside, kind=kind))]
    assert asked[0] == asked[1]
    support.assert_same_weights(one, two)


WORDS = re.escape("ran without gradients, so no loss there could teach it. Use checkpoint(..., use_reentrant=False)")


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize(("whole", "layer"), [(False, "body.0"), (False, "body"), (False, "body.3"), (True, "head")])
def test_reentrant_is_refused_at_the_first_step(door, whole, layer):
    net = student(kind="reentrant", whole=whole)
    before = support.snapshot(net)
    with pytest.raises(RuntimeError, match=re.escape(f"student layer(s) ['{layer}'] ") + WORDS):
        fitted(door, net, layer)
    support.assert_unchanged(net, before)


def test_a_reentrant_call_of_the_whole_student_is_refused():
    guide, parts = support.seeded(partial(Net, 5), 7), [KDLoss()]
    with pytest.raises(RuntimeError, match="The student " + WORDS):
        support.fit(Outside(student(), "reentrant"), callbacks=[DistillationCallback(guide, parts)])


@pytest.mark.parametrize("door", DOORS)
def test_reentrant_elsewhere_is_right(door):
    one, two = (student(kind=kind) for kind in (None, "reentrant"))
    for net in (one, two):
        fitted(door, net, "head")
    support.assert_same_weights(one, two)
