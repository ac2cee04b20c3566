"""Teachers that are called otherwise than the student, or return something else."""

import re

import pytest
import torch
from lightning.pytorch import Callback
from torch import nn

from lightning_kd import DistillationCallback, DistillationModule
from lightning_kd.losses import HintLoss, KDLoss, OFDLoss
from tests import support

DOORS = ["module", "callback"]


def says(*words):
    return ".*".join(re.escape(word) for word in words)


def through(door, guide, losses=None, net=None, teacher_inputs=None, logits_of=None):
    """A door whose hooks are overridden as users do it."""
    given = {"teacher_inputs": teacher_inputs, "logits_of": logits_of}
    hooks = {name: hook for name, hook in given.items() if hook is not None}
    net, losses = net or support.student(), losses or [KDLoss()]
    if door == "module":
        made = type("Module", (DistillationModule,), hooks)(net, guide, losses, task_loss=nn.CrossEntropyLoss())
        return made, []
    return support.UserModule(net), [type("Callback", (DistillationCallback,), hooks)(guide, losses)]


class NeedsMask(support.ConvNet):
    """Must be told by keyword which pixels to look at."""

    def __init__(self):
        super().__init__(8)
        self.masks = []

    def forward(self, image, *, mask):
        self.masks.append(mask)
        return super().forward(image * mask)


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("losses", [[KDLoss()], [OFDLoss()]], ids=["logits", "default layers"])
def test_a_teacher_that_needs_more_arguments_is_refused_at_setup_with_the_remedy(door, losses):
    made, callbacks = through(door, NeedsMask(), losses)
    words = says(
        "The teacher NeedsMask cannot be called", "(float32[2, 1, 4, 4])", "'mask'", "Override teacher_inputs("
    )
    with pytest.raises(ValueError, match=words):
        support.fit(made, callbacks=callbacks)


@pytest.mark.parametrize("door", DOORS)
def test_the_override_gives_it_its_arguments(door):
    def teacher_inputs(self, batch, args, kwargs):
        return (), {"image": args[0], "mask": (batch[0] > 0).float()}

    guide = NeedsMask()
    made, callbacks = through(door, guide, teacher_inputs=teacher_inputs)
    support.fit(made, train=support.loader(), callbacks=callbacks, max_epochs=1, limit_val_batches=0)
    x = support.data().tensors[0]
    assert torch.equal(torch.cat(guide.masks), (x > 0).float())  # the look at set-up leaves no trace


@pytest.mark.parametrize("door", DOORS)
def test_a_teacher_of_another_resolution(door):
    class Large(support.ConvNet):
        def __init__(self):
            super().__init__(8)
            self.head = nn.Linear(8 * 64, support.CLASSES)

    words = says("The teacher Large cannot be called", "shapes cannot be multiplied", "Override teacher_inputs(")
    made, callbacks = through(door, Large())
    with pytest.raises(ValueError, match=words):
        support.fit(made, callbacks=callbacks)

    def teacher_inputs(self, batch, args, kwargs):
        return (nn.functional.interpolate(args[0], scale_factor=2),), kwargs

    net = support.student()
    before = support.snapshot(net)
    made, callbacks = through(door, Large(), [KDLoss()], net, teacher_inputs)
    support.fit(made, callbacks=callbacks, max_epochs=1)
    assert not torch.equal(net.head.weight, before["head.weight"])


@pytest.mark.parametrize("door", DOORS)
def test_an_override_that_returns_something_else_is_named_at_setup(door):
    made, callbacks = through(door, support.teacher(), teacher_inputs=lambda self, batch, args, kwargs: None)
    with pytest.raises(ValueError, match=says("cannot be called", "unpack", "teacher_inputs(batch, args, kwargs)")):
        support.fit(made, callbacks=callbacks)


class Returns(support.ConvNet):
    def __init__(self, form):
        super().__init__(8)
        self.form = form

    def forward(self, x):
        return self.form(super().forward(x))


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize(
    "form", [lambda x: None, lambda x: {"scores": x}, lambda x: ({"scores": x},), lambda x: [], lambda x: "text"]
)
def test_a_teacher_without_logits_is_refused_at_setup_by_a_loss_of_logits(door, form):
    made, callbacks = through(door, Returns(form), [HintLoss("features", "features"), KDLoss()])
    with pytest.raises(ValueError, match=says("Part 'kd' reads the teacher's logits", "override logits_of(output)")):
        support.fit(made, callbacks=callbacks)


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("form", [lambda x: None, lambda x: {"scores": x}])
def test_its_layers_are_read_all_the_same(door, form):
    one, two = support.student(), support.student()
    for net, guide in ((one, support.teacher()), (two, support.seeded(lambda: Returns(form), 7))):
        torch.manual_seed(5)
        made, callbacks = through(door, guide, [HintLoss("features", "features")], net)
        support.fit(made, callbacks=callbacks, max_epochs=1)
    support.assert_same_weights(one, two)


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize(
    "form", [lambda x: (x, None), lambda x: [x, x[:, :1]], lambda x: {"logits": x, "hidden": None}]
)
def test_logits_in_a_tuple_or_dictionary_are_found(door, form):
    one, two = support.student(), support.student()
    for net, guide in ((one, support.teacher()), (two, support.seeded(lambda: Returns(form), 7))):
        made, callbacks = through(door, guide, net=net)
        support.fit(made, callbacks=callbacks, max_epochs=1)
    support.assert_same_weights(one, two)


def test_logits_of_another_name_are_found_by_the_override():
    def logits_of(self, output):
        return output["scores"] if isinstance(output, dict) else output

    net = support.student()
    made, _ = through("module", Returns(lambda x: {"scores": x}), net=net, logits_of=logits_of)
    support.fit(made, max_epochs=1)


def test_weights_of_another_format():
    guide = support.teacher().to(torch.float64)
    with pytest.raises(ValueError, match=says("cannot be called", "pass teacher_dtype")):
        support.fit(support.module(teacher=guide, losses=[KDLoss()]))
    made = support.module(teacher=guide, losses=[KDLoss()], teacher_dtype=torch.float64)
    support.fit(made, max_epochs=1)
    assert guide.head.weight.dtype == torch.float64


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("part", ["", "dropout", "features.1"])
def test_a_teacher_or_a_part_of_it_that_is_set_to_train_in_between_goes_back_to_eval(door, part):
    class Careless(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            guide.get_submodule(part).train()

        def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
            guide.get_submodule(part).train()

    one, two = support.student(), support.student()
    for net, careless in ((one, []), (two, [Careless()])):
        guide = support.seeded(lambda: support.ConvNet(8, dropout=0.5), 7)
        before = support.snapshot(guide)
        torch.manual_seed(5)
        made, callbacks = support.through(door, net, guide=guide)
        support.fit(made, callbacks=[*callbacks, *careless])
        support.assert_unchanged(guide, before)
        assert not any(module.training for module in guide.modules())
    support.assert_same_weights(one, two)
