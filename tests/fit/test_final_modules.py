"""Layers that somebody replaces after set-up are read where they run, with the numbers of a fit without that."""

from functools import partial

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.plugins import Precision
from torch import nn

from lightning_kd import DistillationCallback, DistillationModule
from lightning_kd.losses import HintLoss, KDLoss
from tests import support
from tests.support import UserModule, assert_same_weights

DOORS = ["module", "callback"]


class OtherLinear(nn.Linear):
    """A layer that takes the place of another."""


class OtherNorm(nn.BatchNorm2d):
    """A layer that takes the place of another."""


@torch.random.fork_rng()
def swap(module):
    """Replace layers, with their weights, as Lightning does for ``sync_batchnorm`` and plugins do for few bits."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear:
                new = OtherLinear(child.in_features, child.out_features)
            elif type(child) is nn.BatchNorm2d:
                new = OtherNorm(child.num_features)
                new.running_mean, new.running_var = child.running_mean, child.running_var
                new.num_batches_tracked = child.num_batches_tracked
            else:
                continue
            new.weight, new.bias = child.weight, child.bias
            new.train(child.training)
            setattr(parent, name, new)
    return module


class Net(nn.Module):
    """A network whose layers are replaced by names, at the top and inside a block."""

    def __init__(self, width):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.embed = nn.Linear(16 * width, 5)
        self.head = nn.Linear(5, support.CLASSES)

    def forward(self, x):
        return self.head(self.embed(self.body(x).flatten(1)).relu())


def make(door, net=None, names=("body.1", "embed"), guide=None, **bases):
    net = support.seeded(partial(Net, 3), 3) if net is None else net
    guide = support.seeded(partial(Net, 6), 7) if guide is None else guide
    losses = [KDLoss(), *(HintLoss(name, plain) for name, plain in zip(names, ("body.1", "embed"), strict=False))]
    if door == "module":
        return bases.get("module", DistillationModule)(
            net, guide, losses, task_loss=nn.CrossEntropyLoss(), optimizer=partial(torch.optim.SGD, lr=0.05)
        ), []
    return bases.get("callback", UserModule)(net), [DistillationCallback(guide, losses)]


def fit(made, callbacks=(), **options):
    module, own = made
    trainer = support.fit(module, callbacks=[*callbacks, *own], **options)
    metrics = {name: value.item() for name, value in trainer.callback_metrics.items()}
    test = trainer.validate(module, support.loader(), verbose=False)
    return module, metrics, test


def check_as_without(door, made, callbacks=(), **options):
    right, right_metrics, right_test = fit(make(door))
    module, metrics, test = fit(made, callbacks, **options)
    assert (metrics, test) == (right_metrics, right_test)
    assert any(isinstance(part, OtherLinear) for part in module.modules())
    assert any(isinstance(part, OtherNorm) for part in module.modules())
    assert_same_weights(module, right)


class SwappingPlugin(Precision):
    def convert_module(self, module):
        return swap(module)


class Swap(Callback):
    """Replaces layers in one of its hooks."""

    def __init__(self, hook):
        setattr(self, hook, self.work)

    def work(self, trainer, pl_module, *_, **__):
        swap(pl_module)


@pytest.mark.parametrize("door", DOORS)
def test_by_a_precision_plugin(door):
    check_as_without(door, make(door), plugins=[SwappingPlugin()])


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("hook", ["setup", "on_fit_start", "on_train_start", "on_train_epoch_start"])
def test_by_a_callback(door, hook):
    check_as_without(door, make(door), [Swap(hook)])


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("hook", ["configure_model", "on_fit_start", "on_train_start", "on_train_epoch_start"])
def test_by_the_module_itself(door, hook):
    def swapping(base):
        return type("Swapping", (base,), {hook: lambda self: swap(self) and None})

    check_as_without(door, make(door, module=swapping(DistillationModule), callback=swapping(UserModule)))


@pytest.mark.parametrize("door", DOORS)
def test_a_student_that_is_replaced_as_a_whole(door):
    """As a plugin does that replaces every Linear below the module, where the student is one."""

    def made():
        net, guide = (support.seeded(partial(nn.Linear, 16, support.CLASSES), seed) for seed in (3, 7))
        if door == "module":
            return support.module(net, teacher=guide, losses=[KDLoss()]), []
        return UserModule(net), [DistillationCallback(guide, [KDLoss()])]

    flat = torch.utils.data.DataLoader([(x.flatten(), y) for x, y in support.data()], 8)
    right, right_metrics = _with(made(), flat)
    module, metrics = _with(made(), flat, plugins=[SwappingPlugin()])
    student = module.student if door == "module" else module.net
    assert type(student) is OtherLinear
    assert metrics == right_metrics
    assert_same_weights(module, right)


def _with(made, data, **options):
    module, callbacks = made
    trainer = support.fit(module, train=data, val=data, callbacks=callbacks, **options)
    return module, {name: value.item() for name, value in trainer.callback_metrics.items()}


def test_a_teacher_whose_layers_a_plugin_replaces():
    _, right_metrics, right_test = fit(make("callback"))
    module, callbacks = make("callback")
    (callback,) = callbacks
    _, metrics, test = fit((module, callbacks), plugins=[SwappingPlugin()])
    assert type(callback.teacher.module.embed) is OtherLinear
    assert (metrics, test) == (right_metrics, right_test)


@pytest.mark.parametrize("door", DOORS)
def test_no_hook_stays_on_what_was_replaced_or_replaces(door):
    module, callbacks = make(door)
    before = list(module.modules())
    support.fit(module, callbacks=[Swap("on_fit_start"), *callbacks])
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in [*before, *module.modules()])


@pytest.mark.parametrize("door", DOORS)
def test_a_layer_that_is_gone_is_named(door):
    class Remove(Callback):
        def on_train_start(self, trainer, pl_module):
            net = pl_module.student if isinstance(pl_module, DistillationModule) else pl_module.net
            net.body = nn.Conv2d(1, 3, 3, padding=1)

    module, callbacks = make(door)
    with pytest.raises(RuntimeError, match=r"student Net has no layer 'body\.1' any more"):
        support.fit(module, callbacks=[Remove(), *callbacks])


def compiled(net, *, called):
    net.body = torch.compile(net.body, backend="eager")
    if called:  # a graph without hooks is there before the fit
        training = net.training
        net.eval()
        with torch.no_grad():
            net(torch.zeros(8, 1, 4, 4))
        net(torch.zeros(8, 1, 4, 4))
        net.train(training)
    return net


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("name", ["body.1", "body._orig_mod.1"])
@pytest.mark.parametrize("called", [False, True])
def test_a_part_that_is_compiled(door, name, called):
    _, right_metrics, right_test = fit(make(door))
    torch.compiler.reset()
    student = compiled(support.seeded(partial(Net, 3), 3), called=called)
    guide = compiled(support.seeded(partial(Net, 6), 7), called=called)
    _, metrics, test = fit(make(door, student, (name, "embed"), guide))
    assert metrics == pytest.approx(right_metrics, abs=1e-6)
    assert test[0] == pytest.approx(right_test[0], abs=1e-6)


@pytest.mark.parametrize("door", DOORS)
def test_a_part_that_is_compiled_after_set_up(door):
    class Compile(Callback):
        def on_fit_start(self, trainer, pl_module):
            net = pl_module.student if isinstance(pl_module, DistillationModule) else pl_module.net
            compiled(net, called=False)

    _, right_metrics, _ = fit(make(door))
    _, metrics, _ = fit(make(door), [Compile()])
    assert metrics == pytest.approx(right_metrics, abs=1e-6)


@pytest.mark.parametrize("door", DOORS)
def test_a_fit_in_float64(door):
    _, right_metrics, _ = fit(make(door))
    module, metrics, _ = fit(make(door), precision="64-true")
    assert next(module.parameters()).dtype == torch.float64
    assert metrics == pytest.approx(right_metrics, rel=1e-4)
