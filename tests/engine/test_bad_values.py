"""NaN and inf in the batch, the student or the teacher: an error that names the place, for every exported loss."""

import copy
import re
from dataclasses import replace

import pytest
import torch
from lightning.pytorch import Callback
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_kd.data import Indexed
from lightning_kd.fit.gradients import GradientCheck
from lightning_kd.fit.part_log import PartLog
from lightning_kd.losses import HintLoss, KDLoss, RegressionKDLoss
from lightning_kd.schedules import StepSchedule
from tests import support

DOORS = ["module", "callback"]
NAN, INF = float("nan"), float("inf")
RIGHT = {
    ("DISTLoss", "student_logits", -INF),  # a class of probability 0, which it takes like any other
    ("DISTLoss", "teacher_logits", -INF),
    ("NKDLoss", "teacher_logits", -INF),  # of the teacher alone, so that the student may give it any probability
    ("WSLDLoss", "teacher_logits", -INF),
    ("TokenKDLoss", "teacher_logits", -INF),
    ("ULDLoss", "student_logits", -INF),
    ("ULDLoss", "teacher_logits", -INF),
    ("VIDLoss", "student_features", -INF),  # the projector ends in a ReLU
}
"""Where minus infinity has a meaning."""


def says(*words):
    return ".*".join(re.escape(word) for word in words)


def rows(count=16):
    return DataLoader(Indexed(support.data(count)), batch_size=8)


@pytest.fixture(scope="module", params=support.exported_losses())
def step(request):
    """A loss that was built in a fit, and what one step offers to it."""
    learner, guide = (support.seeded(lambda width=width: support.StagedNet(width), width) for width in (3, 5))
    torch.manual_seed(5)
    made = support.module(learner, teacher=guide, losses=[support.default_loss(request.param)])
    support.fit(made, train=rows(), max_steps=2, max_epochs=-1, limit_val_batches=0)
    step, batch = made.run.step, next(iter(rows()))
    goal = replace(step.objective.main(True), needs_teacher=True)
    step.attach()
    with step.capture.recording() as call:
        step.capture.call(batch[0])
        tensors = step.look(goal, batch, lambda: made.unpack_batch(batch), call)
    (loss,) = step.objective.named.values()
    return request.param, loss, tensors, step.objective.components


def read_by(components, tensors):
    """Yield (field, layer or None, tensor) for everything that the losses read."""
    for loss in components:
        if not loss.student_layers or loss.needs_student_logits:
            yield "student_logits", None, tensors.student_logits
        if loss.needs_teacher_logits:
            yield "teacher_logits", None, tensors.teacher_logits
        for layer in loss.student_layers:
            yield "student_features", layer, tensors.student_features[layer]
        for layer in loss.teacher_layers:
            yield "teacher_features", layer, tensors.teacher_features[layer]


@pytest.mark.parametrize("place", [0, 1, -1])
@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_no_loss_hides_a_value_that_is_not_finite(step, value, place):
    name, loss, tensors, components = step
    read = list(read_by(components, tensors))
    assert read
    for kind, layer, tensor in read:
        if (name, kind, value) in RIGHT:
            continue
        bad = tensor.detach().clone()
        bad.view(-1)[place] = value
        poisoned = replace(tensors, **{kind: bad if layer is None else {**getattr(tensors, kind), layer: bad}})
        staged = loss.stage is not None
        for evaluate in ("evaluate", "evaluate_stage")[: 1 + staged]:
            if evaluate == "evaluate_stage" and not loss.stage.runs_student and kind.startswith("student"):
                continue
            found = getattr(copy.deepcopy(loss), evaluate)(poisoned)
            assert not found.isfinite(), (name, kind, layer, evaluate)


class Falling(support.ConvNet):
    """A teacher whose logits or features overflow on batches that are marked."""

    place = "logits"

    def forward(self, x):
        bad = torch.where(x.abs().amax() > 50.0, INF, 0.0)
        features = self.features(x)
        return self.head(features.flatten(1)) + (bad if self.place == "logits" else 0.0 * features.sum())


def marked(at, value):
    x, y = support.data().tensors
    x = x.clone()
    x[at] = value
    return DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=8)


@pytest.mark.parametrize("door", DOORS)
def test_a_bad_batch_is_named_with_its_step_and_the_weights_are_spared(door):
    net = support.student()
    made, callbacks = support.through(door, net)
    words = says("not finite at step 1", "'kd' is nan", "Not finite in this step: input 0 (16 of 128 values)")
    with pytest.raises(FloatingPointError, match=words):
        support.fit(made, train=marked(9, NAN), callbacks=callbacks)
    assert all(parameter.isfinite().all() for parameter in net.parameters())


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("weight", [1.0, 0.0, StepSchedule([1.0, 0.0], [1], unit="step")])
def test_a_teacher_that_overflows_in_one_batch_is_named_whatever_the_weight(door, weight):
    losses = [KDLoss(weight=weight), HintLoss("features", "features")]  # for which the teacher is asked
    made, callbacks = support.through(door, guide=support.seeded(lambda: Falling(8), 7), losses=losses)
    with pytest.raises(FloatingPointError, match=says("step 1", "in this step: the teacher's logits (32 of 32")):
        support.fit(made, train=marked(9, 100.0), callbacks=callbacks)


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize(
    ("losses", "place"),
    [([KDLoss()], "the teacher's logits (8 of 8 values)"), ([HintLoss("features", "features")], "'features' (")],
)
def test_a_broken_teacher_is_named_at_setup(door, losses, place):
    guide = support.teacher()
    with torch.no_grad():
        guide.features[0].weight[0] = NAN
    net = support.student()
    before = support.snapshot(net)
    made, callbacks = support.through(door, net, guide=guide, losses=losses)
    with pytest.raises(ValueError, match=says("Not finite on the first samples", place)):
        support.fit(made, callbacks=callbacks)
    support.assert_unchanged(net, before)


@pytest.mark.parametrize("door", DOORS)
def test_a_broken_student_is_named_at_setup(door):
    net = support.student()
    net.head.bias.data[0] = INF
    made, callbacks = support.through(door, net)
    with pytest.raises(
        ValueError,
        match=says("Not finite on the first samples", "the student's logits (2 of 8 values)"),
    ):
        support.fit(made, callbacks=callbacks)


def test_a_loss_that_overflows_by_itself_is_told():
    class Huge(nn.Module):
        def forward(self, logits, target):
            return logits.sum() * 1e38 * 1e38

    made = support.module(task_loss=Huge())
    with pytest.raises(FloatingPointError, match=says("'task' is", "is finite, so the loss itself overflows")):
        support.fit(made)


def test_a_target_that_is_no_number_is_told():
    x, y = torch.randn(8, 4), torch.randn(8, 1)
    y[5] = NAN
    learner, guide = (support.seeded(lambda: nn.Linear(4, 1), seed) for seed in (0, 1))
    made = support.module(learner, teacher=guide, losses=[RegressionKDLoss()], task_loss=nn.MSELoss())
    with pytest.raises(FloatingPointError, match=says("'task' is nan", "the target (1 of 8 values)")):
        support.fit(made, train=DataLoader(TensorDataset(x, y), batch_size=8), limit_val_batches=0)


class SaveAfter(Callback):
    """Writes a checkpoint after the second step."""

    def __init__(self, path):
        self.path = path

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == 2:
            trainer.save_checkpoint(self.path)


@pytest.mark.parametrize("door", DOORS)
def test_an_accelerator_learns_of_it_late_but_before_a_checkpoint_is_written(door, tmp_path, monkeypatch):
    for owner in (PartLog, GradientCheck):
        monkeypatch.setattr(owner, "_waits", lambda self, value: True)
    made, callbacks = support.through(door)
    path = tmp_path / "bad.ckpt"
    with pytest.raises(FloatingPointError, match=says("not finite at step 1", "'kd' is nan")):
        support.fit(made, train=marked(9, NAN), callbacks=[*callbacks, SaveAfter(path)], log_every_n_steps=50)
    assert not path.exists()


class Complex(support.ConvNet):
    """Has a layer of complex numbers."""

    def __init__(self, width):
        super().__init__(width)
        self.spectrum = nn.Identity()

    def forward(self, x):
        features = self.features(x)
        self.spectrum(torch.fft.fft2(features))
        return self.head(features.flatten(1))


@pytest.mark.parametrize("loss", ["HintLoss", "ATLoss", "SPLoss", "ICKDLoss", "RKDLoss", "NSTLoss"])
@pytest.mark.parametrize("door", DOORS)
def test_complex_features_are_refused_at_setup(door, loss):
    losses = [support.exported_losses()[loss]("spectrum", "spectrum")]
    made, callbacks = support.through(door, Complex(3), guide=Complex(3), losses=losses)
    words = says("read the teacher's layer 'spectrum', which holds complex numbers (torch.complex64)", "x.abs()")
    with pytest.raises(ValueError, match=words):
        support.fit(made, callbacks=callbacks)


@pytest.mark.parametrize(
    ("collate", "form"),
    [
        (list, "a list of 2 (a tuple of 2 (float32[1, 4, 4], int64[])"),
        (
            lambda rows: [torch.utils.data.default_collate(rows)],
            "a list of 1 (a list of 2 (float32[2, 1, 4, 4], int64[2]",
        ),
    ],
)
def test_a_batch_that_is_a_list_is_told_in_words(collate, form):
    """Two samples are looked at."""
    made = support.module(losses=[KDLoss()])
    train = DataLoader(support.data(), batch_size=8, collate_fn=collate)
    with pytest.raises(TypeError, match=says("a batch that is", form, "Override unpack_batch")):
        support.fit(made, train=train, val=train)
