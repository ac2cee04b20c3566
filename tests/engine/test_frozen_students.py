"""Students of which a part does not train, or that share weights inside of themselves or with others."""

import copy
import re
from functools import partial

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import BaseFinetuning
from torch import nn

from lightning_kd import DistillationModule
from lightning_kd.losses import DistillationLoss, HintLoss, HybridLoss, KDLoss
from lightning_kd.teachers import BornAgain, EMATeacher
from tests import support

DOORS = ["module", "callback"]


def says(*words):
    return ".*".join(re.escape(word) for word in words)


def frozen(*parts):
    net = support.student()
    for part in parts:
        net.get_submodule(part).requires_grad_(False)
    return net


@pytest.mark.parametrize("door", DOORS)
def test_a_student_that_is_frozen_whole_is_refused(door):
    made, callbacks = support.through(door, frozen(""))
    with pytest.raises(ValueError, match=says("Nothing in the student ConvNet can be trained", "requires_grad_(True)")):
        support.fit(made, callbacks=callbacks)


@pytest.mark.parametrize("door", DOORS)
def test_frozen_layers_stay_and_the_rest_trains_as_in_a_loop_by_hand(door):
    net, twin, guide = frozen("features.0"), frozen("features.0"), support.teacher()
    made, callbacks = support.through(door, net, guide=guide, losses=[KDLoss(temperature=2.0)])
    support.fit(made, callbacks=callbacks, train=support.loader())
    optimizer = torch.optim.SGD([p for p in twin.parameters() if p.requires_grad], lr=0.1, momentum=0.9)
    for _ in range(2):
        for x, y in support.loader():
            logits = twin(x)
            loss = nn.functional.cross_entropy(logits, y) + KDLoss(temperature=2.0)(logits, guide(x))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    support.assert_same_weights(net, twin)
    assert torch.equal(net.features[0].weight, support.student().features[0].weight)


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("nested", [False, True])
def test_a_loss_that_reads_only_frozen_layers_warns_once(door, nested):
    hint = HintLoss("features.0", "features.0")
    losses = [KDLoss(), HybridLoss([hint]) if nested else hint]
    net = frozen("features.0")
    made, callbacks = support.through(door, net, losses=losses)
    name = "hybrid.hint" if nested else "hint"
    words = says(f"The loss part(s) ['{name}'] read only frozen layers of the student, so they cannot teach it")
    with pytest.warns(UserWarning, match=words) as found:
        support.fit(made, callbacks=callbacks)
    assert len([one for one in found if "only frozen" in str(one.message)]) == 1


@pytest.mark.parametrize("door", DOORS)
def test_a_loss_behind_a_frozen_layer_teaches_what_comes_after_it(door):
    net = frozen("features.0")
    before = support.snapshot(net)
    made, callbacks = support.through(door, net, losses=[HintLoss("features.1", "features.1")])
    support.fit(made, callbacks=callbacks)  # warnings are errors
    assert not torch.equal(net.features[1].weight, before["features.1.weight"])


class Thaw(BaseFinetuning):
    """Trains the head alone at first, and everything from the second epoch on."""

    def __init__(self, net):
        super().__init__()
        self.net = net
        self.grown = []

    def freeze_before_training(self, pl_module):
        self.freeze(self.net.features, train_bn=False)

    def finetune_function(self, pl_module, epoch, optimizer):
        if epoch == 1:
            self.unfreeze_and_add_param_group(self.net.features, optimizer, lr=0.1)

    def on_train_epoch_end(self, trainer, pl_module):
        self.grown.append(not torch.equal(self.net.features[0].weight, support.student().features[0].weight))


class HeadFirst(support.UserModule):
    def configure_optimizers(self):
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=0.1, momentum=0.9)


@pytest.mark.parametrize("door", DOORS)
def test_layers_that_a_finetuning_callback_thaws_train_from_then_on(door):
    net = support.student()
    made, callbacks = support.through(door, net, losses=[KDLoss(), HintLoss("head", "head")])
    made = HeadFirst(net) if door == "callback" else made
    thaw = Thaw(net)
    support.fit(made, callbacks=[*callbacks, thaw])
    assert thaw.grown == [False, True]


@pytest.mark.parametrize("door", DOORS)
def test_layers_that_are_frozen_in_between_stay_from_then_on(door):
    class Freeze(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch == 1:
                net.features.requires_grad_(False)
                net.features.zero_grad()
                self.weight = net.features[0].weight.clone()

    net, freeze = support.student(), Freeze()
    made, callbacks = support.through(door, net)
    support.fit(made, callbacks=[*callbacks, freeze])
    assert torch.equal(net.features[0].weight, freeze.weight)
    assert not torch.equal(freeze.weight, support.student().features[0].weight)


# Shared weights


class Tied(nn.Module):
    """Its head is its embedding, as in language models."""

    def __init__(self, width=6):
        super().__init__()
        self.embedding = nn.Embedding(support.CLASSES, width)
        self.body = nn.Linear(width, width)
        self.head = nn.Linear(width, support.CLASSES, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, x):
        tokens = (x.flatten(1)[:, :5] > 0).long()
        return self.head(self.body(self.embedding(tokens)).mean(1))


def tied(width=6, seed=3):
    return support.seeded(partial(Tied, width), seed)


def distil(door, net, guide, losses=None, **options):
    torch.manual_seed(5)
    losses = losses or [KDLoss(temperature=2.0), HintLoss("body", "body")]
    if door == "module":
        make = partial(torch.optim.SGD, lr=0.1, momentum=0.9)
        made = DistillationModule(net, guide, losses, task_loss=nn.CrossEntropyLoss(), optimizer=make)
        callbacks = []
    else:
        made, callbacks = support.UserModule(net), [support.DistillationCallback(guide, losses)]
    more = options.pop("callbacks", [])
    return support.fit(made, callbacks=[*callbacks, *more], limit_val_batches=0, **options)


@pytest.mark.parametrize("door", DOORS)
def test_tied_weights_are_optimized_once_and_resume_exactly(door, tmp_path):
    net, guide = tied(), tied(8, seed=7)
    before = support.snapshot(guide)
    train = support.ResumableLoader()
    trainer = distil(door, net, guide, train=train, callbacks=[support.SaveEveryStep(tmp_path)])
    optimized = [p for group in trainer.optimizers[0].param_groups for p in group["params"]]
    assert len({id(p) for p in optimized}) == len(optimized) == 3 + 2  # of the student, and of the projector
    assert net.head.weight is net.embedding.weight
    assert guide.head.weight is guide.embedding.weight
    support.assert_unchanged(guide, before)
    resumed = tied(seed=99)
    distil(door, resumed, tied(8, seed=7), train=support.ResumableLoader(), ckpt_path=tmp_path / "4.ckpt", seed=99)
    assert resumed.head.weight is resumed.embedding.weight
    support.assert_same_weights(net, resumed)


@pytest.mark.parametrize("door", DOORS)
def test_tied_weights_train_as_in_a_loop_by_hand(door):
    net, twin, guide = tied(), tied(), tied(8, seed=7)
    distil(door, net, guide, [KDLoss(temperature=2.0)], train=support.loader())
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.1, momentum=0.9)
    for _ in range(2):
        for x, y in support.loader():
            logits = twin(x)
            optimizer.zero_grad()
            (nn.functional.cross_entropy(logits, y) + KDLoss(temperature=2.0)(logits, guide(x))).backward()
            optimizer.step()
    support.assert_same_weights(net, twin)


@pytest.mark.parametrize("door", DOORS)
def test_teachers_made_of_a_tied_student_are_tied(door):
    net, mean = tied(), EMATeacher(decay=0.5, warmup=False)
    history = [copy.deepcopy(net.head.weight.detach())]

    class Watch(Callback):
        def on_train_batch_end(self, *_):
            history.append(net.head.weight.detach().clone())

    distil(door, net, None, [KDLoss()], callbacks=[mean, Watch()])
    teacher = mean.teacher.module
    assert teacher.head.weight is teacher.embedding.weight
    average = history[0]
    for weight in history[1:]:
        average = 0.5 * average + 0.5 * weight
    torch.testing.assert_close(teacher.head.weight, average)
    again = BornAgain(generations=2)
    distil(door, tied(), None, [KDLoss()], callbacks=[again])
    teacher = again.teacher.module
    assert teacher.head.weight is teacher.embedding.weight


class Borrowing(DistillationLoss):
    """Reads the features through a layer of the student's own."""

    def __init__(self, layer):
        super().__init__("features", "features")
        self.layer = layer

    def forward(self, student, teacher):
        return self.layer(student.flatten(1)).mean()


@pytest.mark.parametrize("door", DOORS)
def test_a_loss_that_has_a_layer_of_the_student_is_refused_at_setup(door):
    net = support.student()
    made, callbacks = support.through(door, net, losses=[Borrowing(net.head)])
    with pytest.raises(ValueError, match=says("Student and losses share 2 parameter(s)", "copy them")):
        support.fit(made, callbacks=callbacks)
