"""Students whose layers run twice, never, or now and then, have two names, or are changed after they have run."""

import re
from functools import partial

import pytest
import torch
from torch import nn

from lightning_kd import DistillationCallback
from lightning_kd.capture.hooks import Capture
from lightning_kd.losses import HintLoss, KDLoss, OFDLoss, RKDLoss
from tests import support

DOORS = ["module", "callback"]


def says(*words):
    return ".*".join(re.escape(word) for word in words)


def fitted(door, net, losses, *, guide=None, **options):
    torch.manual_seed(5)
    made, callbacks = support.through(door, net, guide=guide, losses=losses)
    options = {"max_epochs": 1, "limit_val_batches": 0} | options
    support.fit(made, callbacks=[*callbacks, *options.pop("callbacks", [])], **options)
    return callbacks[0].losses if callbacks else made.losses


class Net(nn.Module):
    """Named pieces that the tests string together in their own ways."""

    def __init__(self, inplace=False):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.act = nn.ReLU(inplace)
        self.head = nn.Linear(48, support.CLASSES)

    def forward(self, x):
        return self.head(self.act(self.norm(self.conv(x))).flatten(1))


class Twice(Net):
    """Shares its activation, as torchvision's residual blocks do."""

    def forward(self, x):
        return self.head(self.act(self.norm(self.act(self.conv(x)))).flatten(1))


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("role", ["student", "teacher"])
def test_a_layer_that_runs_twice_in_one_pass_is_refused_at_setup(door, role):
    layers = {"student": "norm", "teacher": "norm"} | {role: "act"}
    words = says(f"The {role} layer(s) ['act'] ran more than once in one forward pass", "nn.Identity()")
    with pytest.raises(RuntimeError, match=words):
        fitted(door, Twice(), [HintLoss(**layers)], guide=Twice())


@pytest.mark.parametrize("door", DOORS)
def test_a_layer_that_runs_twice_in_training_alone_is_refused_at_that_step(door):
    class InTraining(Twice):
        def forward(self, x):
            return super().forward(x) if self.training else Net.forward(self, x)

    with pytest.raises(RuntimeError, match=says("student layer(s) ['act'] ran more than once")):
        fitted(door, InTraining(), [HintLoss("act", "act")], guide=Net())


def test_a_student_that_the_training_step_calls_twice_counts_with_its_first_call_on_demand():
    class TwoViews(support.UserModule):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            return loss + 0.0 * self.net(batch[0] + 1.0).sum()

    one, two = (support.seeded(Net, 3) for _ in range(2))
    guide = support.seeded(Net, 7)
    for net, module in ((one, support.UserModule), (two, TwoViews)):
        net.norm = nn.Identity()
        callback = DistillationCallback(guide, [KDLoss(), HintLoss("act", "act")], student_calls="first")
        support.fit(module(net), callbacks=[callback], max_epochs=1)
    support.assert_same_weights(one, two)


def test_default_layers_are_none_that_run_twice():
    parts = fitted("module", Twice(), [HintLoss()], guide=Twice())
    assert (parts["hint"].student, parts["hint"].teacher) == ("norm", "norm")


def test_a_module_under_two_names_is_read_by_both():
    class Aliased(Net):
        def __init__(self):
            super().__init__()
            self.again = self.norm

    capture = Capture(net := Aliased(), ["again", "norm"], "student")
    capture.attach()
    with capture.recording() as record:
        net(torch.ones(2, 1, 4, 4))
        capture.check_ran(record)
        assert record.features["again"] is record.features["norm"]
    capture.detach()


# Layers that do not run


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("role", ["student", "teacher"])
def test_a_layer_that_never_runs_is_named_at_setup(door, role):
    class Unused(Net):
        def __init__(self):
            super().__init__()
            self.unused = nn.Linear(2, 2)

    layers = {"student": "norm", "teacher": "norm"} | {role: "unused"}
    with pytest.raises(RuntimeError, match=says(f"{role} layer(s) ['unused'] did not run", "one around them")):
        fitted(door, Unused(), [HintLoss(**layers)], guide=Unused())


class Deep(nn.Module):
    """Blocks in a list; from the second training pass on the last one is left out."""

    def __init__(self, drops=False):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Conv2d(1, 1, 3, padding=1) for _ in range(3))
        self.head = nn.Linear(16, support.CLASSES)
        self.drops, self.passes = drops, 0

    def forward(self, x):
        self.passes += self.training
        for i, block in enumerate(self.blocks):
            if not (self.drops and self.passes == 2 and i == 2):
                x = block(x).relu()
        return self.head(x.flatten(1))


@pytest.mark.parametrize("door", DOORS)
def test_a_list_of_layers_is_refused_and_its_elements_are_read(door):
    words = says("['blocks'] did not run", "'blocks' is a ModuleList", "name blocks.0, blocks.1, blocks.2")
    with pytest.raises(RuntimeError, match=words):
        fitted(door, Deep(), [HintLoss("blocks", "blocks.1")], guide=Deep())
    net = Deep()
    before = support.snapshot(net)
    fitted(door, net, [HintLoss("blocks.1", "blocks.2")], guide=Deep())
    assert not torch.equal(net.blocks[1].weight, before["blocks.1.weight"])


@pytest.mark.parametrize("door", DOORS)
def test_a_layer_that_a_step_leaves_out_is_named_at_that_step(door):
    net = Deep(drops=True)
    with pytest.raises(RuntimeError, match=says("student layer(s) ['blocks.2'] did not run", "every forward pass")):
        fitted(door, net, [HintLoss("blocks.2", "blocks.2")], guide=Deep())
    assert net.passes == 2


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("value", [None, {"x": torch.ones(2)}, ()])
def test_a_layer_that_returns_no_tensor_is_named_at_setup(door, value):
    class Odd(nn.Module):
        def forward(self, x):
            return value

    class WithOdd(Net):
        def __init__(self):
            super().__init__()
            self.odd = Odd()

        def forward(self, x):
            self.odd(x)
            return super().forward(x)

    words = says("student layer 'odd' (Odd) returned a", type(value).__name__, "name an inner layer")
    with pytest.raises(TypeError, match=words):
        fitted(door, WithOdd(), [HintLoss("odd", "norm")], guide=Net())


# Values that are changed in place after a layer has returned them


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize(("mine", "its"), [(True, False), (False, True), (True, True)])
@pytest.mark.parametrize("loss", [partial(HintLoss, "norm", "norm"), OFDLoss], ids=["hint", "default layers"])
def test_a_layer_is_read_before_an_activation_overwrites_it(loss, mine, its, door):
    plain, other = (support.seeded(partial(Net, inplace), 3) for inplace in (False, mine))
    guides = [support.seeded(partial(Net, inplace), 7) for inplace in (False, its)]
    parts = fitted(door, plain, [loss()], guide=guides[0])
    its_parts = fitted(door, other, [loss()], guide=guides[1])
    assert (part := next(iter(its_parts.values()))).student in ("norm", ["norm"])
    assert part.teacher == next(iter(parts.values())).teacher
    support.assert_same_weights(plain, other)


class Residual(Net):
    """Adds to what a layer returned, as residual blocks do."""

    def forward(self, x):
        y = self.norm(self.conv(x))
        y += x
        return self.head(y.flatten(1))


class OutOfPlace(Net):
    def forward(self, x):
        return self.head((self.norm(self.conv(x)) + x).flatten(1))


@pytest.mark.parametrize("door", DOORS)
def test_a_layer_is_read_before_a_residual_is_added_to_it(door):
    one, two = (support.seeded(make, 3) for make in (OutOfPlace, Residual))
    guide, same = (support.seeded(make, 7) for make in (OutOfPlace, Residual))
    fitted(door, one, [HintLoss("norm", "norm")], guide=guide)
    fitted(door, two, [HintLoss("norm", "norm")], guide=same)
    support.assert_same_weights(one, two)


@pytest.mark.parametrize("door", DOORS)
def test_a_change_in_training_alone_is_refused_at_the_step(door):
    class Dropping(Net):
        def forward(self, x):
            return self.head(nn.functional.dropout(self.norm(self.conv(x)), 0.5, self.training, True).flatten(1))

    with pytest.raises(
        RuntimeError, match=says("What the student layer(s) ['norm'] returned was changed in place", "inplace=False")
    ):
        fitted(door, Dropping(), [HintLoss("norm", "norm")], guide=Net())


@pytest.mark.parametrize("losses", [[KDLoss()], [HintLoss("norm", "norm")]])
def test_logits_that_the_training_step_changes_matter_to_a_loss_that_reads_them(losses):
    class Scaling(support.UserModule):
        def training_step(self, batch, batch_idx):
            logits = self.net(batch[0])
            logits /= 2.0
            return self.criterion(logits, batch[1])

    _, callbacks = support.through("callback", Net(), guide=Net(), losses=losses)
    if isinstance(losses[0], HintLoss):
        support.fit(Scaling(Net()), callbacks=callbacks, max_epochs=1)
        return
    with pytest.raises(RuntimeError, match=says("What the student returned was changed in place")):
        support.fit(Scaling(Net()), callbacks=callbacks, max_epochs=1)


class Whitening(Net):
    """Normalises its input in place: always, or in training alone."""

    def __init__(self, always=True):
        super().__init__()
        self.always = always

    def forward(self, x):
        if self.always or self.training:
            x.sub_(0.5)
        return super().forward(x)


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize(
    ("role", "student", "teacher"),
    [
        ("student", partial(Whitening, always=True), Net),
        ("student", partial(Whitening, always=False), Net),
        ("teacher", Net, Whitening),
    ],
)
def test_an_input_that_is_changed_in_place_is_refused(door, role, student, teacher):
    with pytest.raises(RuntimeError, match=says(f"The {role} changed its input in place", "x = x.clone()")):
        fitted(door, student(), [HintLoss("norm", "norm")], guide=teacher())


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("named", [True, False])
def test_a_dropout_that_works_in_place_in_training_alone_changes_nothing_that_is_read(door, named):
    """As the classifiers of torchvision's EfficientNet and MobileNet have it."""

    class Headed(nn.Module):
        def __init__(self, inplace):
            super().__init__()
            self.body = nn.Sequential(nn.Flatten(), nn.Linear(16, 6))
            self.classifier = nn.Sequential(nn.Dropout(0.5, inplace=inplace), nn.Linear(6, support.CLASSES))

        def forward(self, x):
            return self.classifier(self.body(x))

    ends = []
    for inplace in (False, True):
        student, guide = (support.seeded(partial(Headed, inplace), seed) for seed in (3, 7))
        loss = RKDLoss("body", "body") if named else RKDLoss()
        made, callbacks = support.through(door, student, guide=guide, losses=[loss])
        torch.manual_seed(5)
        support.fit(made, callbacks=callbacks, max_epochs=1)
        ends.append(student)
    support.assert_same_weights(*ends)
