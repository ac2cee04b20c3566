"""A gradient that is not finite is told before the optimizer step, with the parameters and the part at fault."""

import re

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_kd.fit.gradients import GradientCheck
from lightning_kd.fit.part_log import PartLog
from lightning_kd.losses import DistillationLoss, HintLoss, KDLoss
from tests import support
from tests.support import processes

DOORS = ["module", "callback"]
NAN = float("nan")


def says(*words):
    return ".*".join(re.escape(word) for word in words)


class Root(DistillationLoss):
    """Zero at some batches, by a root whose derivative there is infinite: a finite loss, and a gradient of NaN."""

    def forward(self, student, teacher):
        marked = student.detach().abs().amax() > 50.0
        inner = student - student.detach()
        return (inner.square().sum() + torch.where(marked, 0.0, 1.0)).sqrt()


class RootTask(nn.Module):
    """The same in the task's own loss, from its second call on."""

    calls = 0

    def forward(self, logits, target):
        self.calls += 1
        return ((logits - logits.detach()).square().sum() + (1.0 if self.calls < 2 else 0.0)).sqrt()


class OwnParameter(DistillationLoss):
    """A loss whose own parameter has a gradient of infinity, while what reaches the student is finite."""

    needs_teacher_logits = True

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(1))
        self.calls = 0

    def forward(self, student_logits, teacher_logits):
        self.calls += 1
        return student_logits.mean() + (self.scale.square().sum() if self.calls < 2 else self.scale.abs().sqrt().sum())


def marked(*rows, count=24):
    """Batches of 8 rows, in which some rows are a hundred times larger."""
    x, y = support.data(count).tensors
    x = x.clone()
    x[list(rows)] *= 100.0
    return DataLoader(TensorDataset(x, y), batch_size=8)


class Watch(Callback):
    """Remembers the student's weights at the end of each step."""

    def __init__(self, net):
        self.net, self.seen = net, [support.snapshot(net)]

    def on_train_batch_end(self, trainer, *_):
        self.seen.append(support.snapshot(self.net))


def fit(door, losses, *, task=None, train=None, **options):
    net = support.student()
    made, callbacks = support.through(door, net, losses=losses)
    if task is not None:
        setattr(made, "task_loss" if door == "module" else "criterion", task)
    watch = Watch(net)
    try:
        support.fit(made, train=marked(8) if train is None else train, callbacks=[*callbacks, watch], **options)
    finally:
        parameters = dict(net.named_parameters())
        for name, value in watch.seen[-1].items():
            if name in parameters:  # BatchNorm's statistics belong to the forward pass
                assert torch.equal(parameters[name], value), name
    return made, watch


@pytest.mark.parametrize("options", [{}, {"gradient_clip_val": 0.5}, {"precision": "bf16-mixed"}])
@pytest.mark.parametrize("door", DOORS)
def test_the_part_and_the_layer_are_named_and_the_weights_are_spared(door, options):
    words = says(
        "gradient is not finite at step 1, though the loss is finite",
        "features.0.weight' (27 of 27 values)",
        "'root' gives it at the student's layer 'features.0'",
        "weights have not been updated",
    )
    losses = [KDLoss(), Root("features.0", "features.0"), HintLoss("features", "features")]
    with pytest.raises(FloatingPointError, match=words) as error:
        fit(door, losses, **options)
    assert "'kd'" not in str(error.value)
    assert "'hint'" not in str(error.value)
    assert "head" not in str(error.value)


@pytest.mark.parametrize("door", DOORS)
def test_a_loss_that_reads_logits_is_named(door):
    class Late(DistillationLoss):
        needs_teacher_logits = True
        calls = 0

        def forward(self, student_logits, teacher_logits):
            self.calls += 1
            inner = student_logits - student_logits.detach()
            return (inner.square().sum() + (1.0 if self.calls < 2 else 0.0)).sqrt()

    with pytest.raises(FloatingPointError, match=says("at step 1", "'late' gives it at the student's logits")):
        fit(door, [KDLoss(), Late()])


@pytest.mark.parametrize("door", DOORS)
def test_the_task_or_the_network_is_named_where_no_part_is_at_fault(door):
    words = says("at step 1", "No distillation loss gives it", "the task's loss or the network itself")
    with pytest.raises(FloatingPointError, match=words):
        fit(door, [KDLoss()], task=RootTask())


@pytest.mark.parametrize("door", DOORS)
def test_a_parameter_of_a_loss_is_named(door):
    with pytest.raises(FloatingPointError, match=says("own_parameter.scale' (1 of 1 values)", "'own_parameter' gives")):
        fit(door, [KDLoss(), OwnParameter()])


@pytest.mark.parametrize("door", DOORS)
def test_a_gradient_of_any_accumulated_batch_counts(door):
    with pytest.raises(FloatingPointError, match=says("at step 0", "features.0.weight'")):
        fit(door, [Root("features.0", "features.0")], accumulate_grad_batches=2, train=marked(0))


@pytest.mark.parametrize("door", DOORS)
def test_large_finite_gradients_are_none_of_it(door):
    """Finite gradients whose sum and whose squares overflow."""

    class Huge(Callback):
        def on_after_backward(self, trainer, pl_module):
            for parameter in (pl_module.net if door == "callback" else pl_module.student).parameters():
                parameter.grad.fill_(3e38)

    made, callbacks = support.through(door)
    made.configure_optimizers = lambda: torch.optim.SGD(made.parameters(), lr=0.0)
    support.fit(made, callbacks=[*callbacks, Huge()], max_steps=2, limit_val_batches=0)


@pytest.mark.parametrize("door", DOORS)
def test_who_mends_the_gradients_goes_on(door):
    class Mends(Callback):
        mended = 0

        def on_after_backward(self, trainer, pl_module):
            for parameter in pl_module.parameters():
                if parameter.grad is not None and not parameter.grad.isfinite().all():
                    parameter.grad.nan_to_num_(0.0, 0.0, 0.0)
                    self.mended += 1

    mends = Mends()
    made, callbacks = support.through(door, losses=[KDLoss(), Root("features.0", "features.0")])
    trainer = support.fit(made, train=marked(8), callbacks=[*callbacks, mends], max_epochs=1)
    assert trainer.global_step == 3
    assert mends.mended


@pytest.mark.parametrize("door", DOORS)
def test_a_gradient_scaler_skips_its_steps_itself(door):
    """As on a GPU in 16-mixed, where the scale is halved at gradients that are not finite."""
    net = support.student()
    made, callbacks = support.through(door, net, losses=[KDLoss(), Root("features.0", "features.0")])
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    plugin = MixedPrecision("16-mixed", "cpu", scaler)
    support.fit(made, train=marked(8), callbacks=callbacks, max_epochs=1, plugins=[plugin])
    assert scaler.get_scale() == 1.0
    assert all(parameter.isfinite().all() for parameter in net.parameters())


class SaveAfter(Callback):
    """Writes a checkpoint after some step."""

    def __init__(self, path, step):
        self.path, self.step = path, step

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


@pytest.mark.parametrize("rows", [(8,), (16,)])
@pytest.mark.parametrize("door", DOORS)
def test_an_accelerator_learns_of_it_before_a_checkpoint_is_written_or_an_epoch_ends(door, rows, monkeypatch, tmp_path):
    for owner in (GradientCheck, PartLog):
        monkeypatch.setattr(owner, "_waits", lambda self, value: True)
    made, callbacks = support.through(door, losses=[KDLoss(), Root("features.0", "features.0")])
    words = says(f"gradient was not finite at step {rows[0] // 8}", "have been updated with it", "features.0.weight'")
    saver = [SaveAfter(tmp_path / "bad.ckpt", 2)]
    with pytest.raises(FloatingPointError, match=words):
        support.fit(made, train=marked(*rows), callbacks=[*callbacks, *saver], log_every_n_steps=50)
    assert not (rows == (8,) and (tmp_path / "bad.ckpt").exists())


@pytest.mark.parametrize("door", DOORS)
def test_an_accelerator_learns_of_it_late_and_is_told_that_the_weights_took_it(door, monkeypatch):
    for owner in (GradientCheck, PartLog):
        monkeypatch.setattr(owner, "_waits", lambda self, value: True)
    made, callbacks = support.through(door, losses=[KDLoss(), Root("features.0", "features.0")])
    words = says("gradient was not finite at step 1", "weights have been updated with it", "features.0.weight'")
    with pytest.raises(FloatingPointError, match=words) as error:
        support.fit(made, train=marked(8), callbacks=callbacks)
    assert "have not been updated" not in str(error.value)


@pytest.mark.parametrize("door", DOORS)
def test_sparse_gradients_are_looked_into(door):
    class Words(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.head = nn.Embedding(10, 4, sparse=True), nn.Linear(4, 4)

        def forward(self, ids):
            return self.head(self.table(ids).mean(1))

    net = Words()
    made, callbacks = support.through(door, net, guide=Words(), losses=[KDLoss(), Root("table", "table")])
    made.configure_optimizers = lambda: torch.optim.SGD(made.parameters(), lr=0.1)
    net.table.weight.data[3] = 100.0
    ids = torch.arange(24).remainder(3).unsqueeze(1)
    ids[8] = 3
    data = DataLoader(TensorDataset(ids, torch.zeros(24, dtype=torch.long)), batch_size=8)
    with pytest.raises(FloatingPointError, match=says("at step 1", "table.weight'", "'root' gives it")):
        support.fit(made, train=data, val=data, callbacks=callbacks)


@pytest.mark.parametrize("door", DOORS)
def test_weights_that_were_not_finite_before_are_not_said_to_be_spared(door):
    """A user's own step, past every hook."""

    class Breaks(Callback):
        def on_before_zero_grad(self, trainer, pl_module, optimizer):
            if trainer.global_step == 1:
                next(pl_module.parameters()).data.fill_(NAN)

    made, callbacks = support.through(door, losses=[KDLoss()])
    with pytest.raises(FloatingPointError, match=says("loss is not finite at step", "features.0.weight'")) as error:
        support.fit(made, callbacks=[*callbacks, Breaks()])
    assert "have not been updated" not in str(error.value)


def test_nothing_of_a_step_is_kept_after_it():
    kept = []

    class Look(Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            kept.append(pl_module.run.gradients.tensors)

    support.fit(support.module(losses=[KDLoss()]), callbacks=[Look()], max_epochs=1)
    assert kept == [None] * 3


@pytest.mark.slow
@pytest.mark.parametrize("door", DOORS)
def test_all_processes_stop_alike_with_the_same_weights(door, tmp_path):
    """The batch at fault is one process's alone."""
    processes.program("programs.distributed_gradients", door, tmp_path, limit=120)
    first, second = (torch.load(tmp_path / str(rank), weights_only=True) for rank in range(2))
    assert all(torch.equal(value, second["weights"][name]) for name, value in first["weights"].items())
    for found in (first, second):
        assert "gradient is not finite at step 1, though the loss is finite" in found["said"]
        assert "features.0.weight' (27 of 27 values)" in found["said"]
        assert all(value.isfinite().all() for value in found["weights"].values())
    told = [found["said"].count("'root' gives it at the student's layer 'features.0'") for found in (first, second)]
    assert sorted(told) == [0, 1]
    assert "No distillation loss gives it in the last batch of this process" in (first, second)[told.index(0)]["said"]
