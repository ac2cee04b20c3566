"""The callback beside optimizers that users made of a submodule's parameters, with schedules and groups."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.seed import isolate_rng
from torch import nn, optim
from torch.optim import lr_scheduler

from lightning_kd import DistillationCallback
from lightning_kd.functional import hint_loss
from lightning_kd.losses import HintLoss
from tests import support
from tests.doors.test_callback_styles import fit

STEPS = 12
SGD = partial(optim.SGD, lr=0.1, momentum=0.9)
SCHEDULERS = {
    "none": None,
    "OneCycleLR": partial(lr_scheduler.OneCycleLR, max_lr=0.1, total_steps=STEPS),
    "LambdaLR": partial(lr_scheduler.LambdaLR, lr_lambda=lambda step: 0.9**step),
    "CosineAnnealingLR": partial(lr_scheduler.CosineAnnealingLR, T_max=STEPS),
    "MultiplicativeLR": partial(lr_scheduler.MultiplicativeLR, lr_lambda=lambda step: 0.9),
    "CyclicLR": partial(lr_scheduler.CyclicLR, base_lr=0.01, max_lr=0.1, step_size_up=3),
    "ReduceLROnPlateau": partial(lr_scheduler.ReduceLROnPlateau, patience=0, threshold=10.0),
    "SequentialLR": lambda made: lr_scheduler.SequentialLR(
        made, [lr_scheduler.LinearLR(made, 0.1, total_iters=3), lr_scheduler.ExponentialLR(made, 0.9)], milestones=[3]
    ),
}
UNLIKE = {"Optimizer", "SparseAdam", "Muon", "Adagrad"}  # for sparse gradients, for matrices, refused below
OPTIMIZERS = sorted(
    name for name, one in vars(optim).items() if isinstance(one, type) and issubclass(one, optim.Optimizer)
)


class OfASubmodule(LightningModule):
    """Makes its optimizer of the network's parameters."""

    def __init__(self, make_optimizer=SGD, make_scheduler=None):
        super().__init__()
        self.net = support.student()
        self.make_optimizer, self.make_scheduler = make_optimizer, make_scheduler

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = F.cross_entropy(self.net(x), y)
        self.log("task", loss, on_step=True, on_epoch=True)
        return loss

    def trained(self):
        return self.net.parameters()

    def configure_optimizers(self):
        made = self.make_optimizer(self.trained())
        if self.make_scheduler is None:
            return made
        scheduler = {"scheduler": self.make_scheduler(made), "interval": "step", "monitor": "task"}
        return {"optimizer": made, "lr_scheduler": scheduler}


class ByHand(OfASubmodule):
    """Holds the projector itself, and gives it to the optimizer before the scheduler is made."""

    def setup(self, stage):
        with isolate_rng():
            self.projector = nn.Conv2d(3, 8, 1)
        self.first = self.projector.weight.clone()

    def training_step(self, batch, batch_idx):
        x, y = batch
        features = self.net.features(x)
        task = F.cross_entropy(self.net.head(features.flatten(1)), y)
        self.log("task", task, on_step=True, on_epoch=True)
        with torch.no_grad():
            shown = support.teacher().eval().features(x)
        return task + 2.0 * hint_loss(self.projector(features), shown)

    def trained(self):
        return [*self.net.parameters(), *self.projector.parameters()]


def callback():
    return DistillationCallback(support.teacher(), [HintLoss("features", "features", weight=2.0)])


def assert_trains_the_same(made, written, **options):
    watching = callback()
    trainer = fit(made, callbacks=[watching], **options)
    fit(written, **options)
    support.assert_same_weights(made.net, written.net)
    weight, bias = watching.losses.parameters()
    assert torch.equal(weight, written.projector.weight)
    assert torch.equal(bias, written.projector.bias)
    assert not torch.equal(weight, written.first)
    return trainer


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler_goes_on_as_if_the_losses_had_been_there(name):
    scheduler = SCHEDULERS[name]
    assert_trains_the_same(OfASubmodule(SGD, scheduler), ByHand(SGD, scheduler), max_epochs=4)


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name not in UNLIKE])
def test_every_optimizer_takes_the_losses(name):
    make = partial(getattr(optim, name), lr=0.001 if name == "LBFGS" else 0.05)  # which diverges otherwise
    schedule = SCHEDULERS["LambdaLR"]
    trainer = assert_trains_the_same(OfASubmodule(make, schedule), ByHand(make, schedule))
    assert len(trainer.optimizers[0].param_groups) == 1


@pytest.mark.parametrize("name", ["none", "OneCycleLR", "ReduceLROnPlateau"])
def test_a_resumed_run_is_the_uninterrupted_one(name, tmp_path):
    whole, first, second = (OfASubmodule(partial(optim.AdamW, lr=0.05), SCHEDULERS[name]) for _ in range(3))
    saving = {"callbacks": [ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)], "enable_checkpointing": True}
    ours = [callback() for _ in range(3)]
    fit(whole, callbacks=[ours[0]], max_epochs=4)
    fit(first, max_epochs=2, **{**saving, "callbacks": [ours[1], *saving["callbacks"]]})
    path = tmp_path / "epoch=1.ckpt"
    fit(second, seed=99, max_epochs=4, ckpt_path=path, **{**saving, "callbacks": [ours[2], *saving["callbacks"]]})
    support.assert_same_weights(whole, second)
    support.assert_same_weights(ours[0].losses, ours[2].losses)


def group_of_the_losses(groups):
    """Fit with parameter groups; returns the index of the one that the losses joined."""

    class Grouped(OfASubmodule):
        def trained(self):
            return groups(self.net)

    watching = callback()
    trainer = fit(Grouped(SGD, SCHEDULERS["LambdaLR"]), callbacks=[watching])
    projector, _ = watching.losses.parameters()
    (index,) = (
        i for i, group in enumerate(trainer.optimizers[0].param_groups) if any(p is projector for p in group["params"])
    )
    return index


def decayed_last(net):
    weights = [p for p in net.parameters() if p.ndim > 1]
    rest = [p for p in net.parameters() if p.ndim == 1]
    return [{"params": rest, "weight_decay": 0.0}, {"params": weights, "weight_decay": 0.1}]


def test_the_losses_join_the_group_of_new_layers_or_of_weights():
    rates = {"features": 0.01, "head": 0.1}

    def by_rate(net):
        return [{"params": getattr(net, part).parameters(), "lr": lr} for part, lr in rates.items()]

    assert group_of_the_losses(by_rate) == 1
    assert group_of_the_losses(lambda net: by_rate(net)[::-1]) == 0
    assert group_of_the_losses(decayed_last) == 1
    assert group_of_the_losses(lambda net: decayed_last(net)[::-1]) == 0


def test_named_parameters_stay_named():
    class Named(OfASubmodule):
        def trained(self):
            return self.net.named_parameters()

    trainer = fit(Named(), callbacks=[callback()])
    (group,) = trainer.optimizers[0].param_groups
    assert group["param_names"][-1] == "_kd.hint.projectors.0.conv.bias"
    assert len(group["param_names"]) == len(group["params"])


@pytest.mark.parametrize("sharded", [False, True])
def test_an_optimizer_that_lays_out_its_parameters_is_refused_with_the_remedy(sharded):
    class Sharded(optim.SGD):
        def add_param_group(self, group):
            super().add_param_group(group)

    make = partial(Sharded if sharded else optim.Adagrad, lr=0.1)
    with pytest.raises(MisconfigurationException, match=r"takes none after it is made.*use self.parameters\(\)"):
        fit(OfASubmodule(make), callbacks=[callback()])

    class All(OfASubmodule):
        def trained(self):
            return self.parameters()

    written = ByHand(make)
    assert_trains_the_same(All(make), written)


def test_several_optimizers_are_refused_with_the_remedy():
    class Several(OfASubmodule):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

    with pytest.raises(MisconfigurationException, match="automatic_optimization = True"):
        fit(Several(), callbacks=[callback()])
