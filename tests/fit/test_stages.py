"""The stage before the main training: what trains in it, what waits, and how it ends, through both doors."""

from functools import partial

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback
from torch import nn

from lightning_kd import DistillationCallback
from lightning_kd.losses import DistillationLoss, KDLoss
from lightning_kd.losses.stage import Stage
from lightning_kd.schedules import Moment
from tests import support

DOORS = ["module", "callback"]


class Compressed(DistillationLoss):
    """Like FT: a part of its own learns the teacher's features first, without the student."""

    reads = "map"

    def __init__(self, length=1, unit="epoch", lr=None, *, weight=1.0):
        super().__init__("features", "features", weight=weight)
        self.length, self.unit, self.lr = length, unit, lr
        self.stage = Stage(length, unit, runs_student=False, lr=lr)

    def build(self, student_shapes, teacher_shapes):
        self.code = nn.Conv2d(teacher_shapes["features"][1], student_shapes["features"][1], 1)
        self.back = nn.Conv2d(student_shapes["features"][1], teacher_shapes["features"][1], 1)

    def evaluate_stage(self, step):
        assert step.student_logits is None
        assert not step.student_features
        features = step.teacher_features["features"]
        return (self.back(self.code(features)) - features).square().mean()

    def forward(self, student, teacher):
        with torch.no_grad():
            code = self.code(teacher)
        return (student - code).square().mean()


class Initialised(DistillationLoss):
    """Like FSP and AB: the student learns the loss alone first, and the task alone afterwards."""

    reads = "map"

    def __init__(self, length=1, unit="epoch", *, weight=1.0):
        super().__init__("features", "features", weight=weight)
        self.length, self.unit = length, unit
        self.stage = Stage(length, unit, then_stops=True)

    def build(self, student_shapes, teacher_shapes):
        self.projector = nn.Conv2d(student_shapes["features"][1], teacher_shapes["features"][1], 1)

    def forward(self, student, teacher):
        return (self.projector(student) - teacher).square().mean()


class Watch(Callback):
    """Keeps weights, learning rates and the parts of the loss after every step."""

    def __init__(self, student, losses):
        self.parts = {"student": student, "losses": losses}
        self.seen, self.rates, self.momenta = [], [], []

    def on_train_start(self, trainer, pl_module):
        self.seen.append(self.weights())

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.seen.append(self.weights())
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    def weights(self):
        return {f"{k}.{n}": v.clone() for k, part in self.parts.items() for n, v in part.state_dict().items()}

    def moved(self, step, prefix):
        before, after = self.seen[step], self.seen[step + 1]
        return {n for n in after if n.startswith(prefix) and not torch.equal(before[n], after[n])}


class Scheduled(support.UserModule):
    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
        return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)]


def fitted(door, losses, *callbacks, **options):
    """Fit through a door with a schedule that halves the rate each epoch; 3 steps an epoch."""
    net, guide = support.student(), support.teacher()
    torch.manual_seed(5)
    if door == "module":
        made = support.module(
            net,
            teacher=guide,
            losses=losses,
            optimizer=partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.1),
            lr_scheduler=partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.5),
        )
        doors, parts = [], made.losses
    else:
        made = Scheduled(net)
        doors = [DistillationCallback(guide, losses)]
        parts = doors[0].losses
    watch = Watch(net, parts)
    trainer = support.fit(made, callbacks=[*doors, watch, *callbacks], **options)
    return watch, trainer, net, parts


@pytest.mark.parametrize("door", DOORS)
def test_a_stage_without_the_student_leaves_every_bit_of_it_alone(door):
    watch, *_ = fitted(door, [Compressed(length=1)], max_epochs=2)
    for step in range(3):
        assert watch.moved(step, "student") == set()
        assert watch.moved(step, "losses.compressed") == {
            f"losses.compressed.{layer}.{name}" for layer in ("code", "back") for name in ("weight", "bias")
        }
    for step in range(3, 6):
        assert "student.features.1.running_mean" in watch.moved(step, "student")
        assert watch.moved(step, "losses.compressed") == set()  # frozen, not even decayed


@pytest.mark.parametrize("door", DOORS)
def test_a_stage_of_the_loss_alone_is_followed_by_the_task_alone(door):
    watch, *_ = fitted(door, [Initialised(length=1)], max_epochs=2)
    for step in range(3):
        assert "student.head.weight" not in watch.moved(step, "student")
        assert "losses.initialised.projector.weight" in watch.moved(step, "losses")
    for step in range(3, 6):
        assert "student.head.weight" in watch.moved(step, "student")
        assert watch.moved(step, "losses") == set()


@pytest.mark.parametrize("door", DOORS)
def test_the_teacher_does_not_run_when_nothing_asks_for_it(door):
    calls = []
    guide = support.teacher()
    guide.register_forward_hook(lambda *_: calls.append(1))
    made, callbacks = support.through(door, guide=guide, losses=[Initialised(length=1)])
    support.fit(made, callbacks=callbacks, max_epochs=3, limit_val_batches=0)
    assert len(calls) == 2 + 3  # for the sizes, with one sample more, and in the stage


def test_the_task_after_the_stage_is_trained_as_without_a_stage():
    """The student that comes out of the stage, trained on the task with a fresh optimizer, gives the same weights."""
    seen = Batches()
    watch, _, net, _ = fitted("module", [Initialised(length=1)], seen, max_epochs=3)
    plain = support.student()
    plain.load_state_dict({n.removeprefix("student."): v for n, v in watch.seen[3].items() if n.startswith("student.")})
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    for epoch in (1, 2):
        for x, y in seen.batches[3 * epoch : 3 * epoch + 3]:
            optimizer.zero_grad()
            nn.functional.cross_entropy(plain(x), y).backward()
            optimizer.step()
        schedule.step()
    support.assert_same_weights(plain, net)


@pytest.mark.filterwarnings("ignore:The first stage takes 3:UserWarning")
def test_a_stage_leaves_what_it_does_not_train_alone_in_a_compiled_student_too():
    nets = [support.student(), support.student()]
    nets[1].compile(fullgraph=True, backend="aot_eager")
    for net in nets:
        head = {name: value.clone() for name, value in net.head.state_dict().items()}
        optimizer = partial(torch.optim.SGD, lr=0.1, weight_decay=0.1)
        stage = support.module(net, losses=[Initialised(length=3, unit="step")], optimizer=optimizer)
        support.fit(stage, max_epochs=-1, max_steps=3, limit_val_batches=0)
        support.assert_unchanged(net.head, head)
    torch.testing.assert_close(nets[0].features[0].weight, nets[1].features[0].weight)


class Batches(Callback):
    def __init__(self):
        self.batches = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.batches.append(batch)


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize(("length", "unit", "boundary"), [(1, "epoch", 3), (2, "step", 2), (4, "step", 4)])
def test_the_learning_rate_stands_still_in_the_stage_and_then_begins_anew(door, length, unit, boundary):
    watch, *_ = fitted(door, [Compressed(length, unit, lr=0.01)], max_epochs=4)
    assert watch.rates[:boundary] == [0.01] * boundary
    epochs = [step // 3 for step in range(12)]
    first = epochs[boundary]  # the epoch in which the main training begins; its end halves the rate
    expected = [0.1 * 0.5 ** (epochs[step] - first) for step in range(boundary, 12)]
    # on_train_batch_end comes after an epoch's schedule
    after = [rate * (0.5 if step % 3 == 2 else 1.0) for step, rate in enumerate(expected, boundary)]
    assert watch.rates[boundary:] == pytest.approx(after)


def test_both_doors_go_through_the_stages_alike():
    one, two = (fitted(door, [Compressed(2, "step", lr=0.05), KDLoss()], max_epochs=2) for door in DOORS)
    support.assert_same_weights(one[2], two[2])
    support.assert_same_weights(one[3], two[3])


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("loss", [Compressed, Initialised])
@pytest.mark.parametrize("at", [1, 2, 3, 4, 5])
def test_a_run_resumed_at_any_step_equals_the_uninterrupted_one(door, loss, at, tmp_path):
    def losses():
        return [loss(2, "step")]

    options = {"max_epochs": 2, "train": support.ResumableLoader()}
    _, _, whole, parts = fitted(door, losses(), support.SaveEveryStep(tmp_path), **options)
    _, _, resumed, its = fitted(door, losses(), ckpt_path=tmp_path / f"{at}.ckpt", seed=99, **options)
    support.assert_same_weights(whole, resumed)
    support.assert_same_weights(parts, its)


@pytest.mark.parametrize(
    ("options", "expected"),
    [({"max_epochs": 20}, (2, "epoch")), ({"max_epochs": 3}, (1, "epoch")), ({"max_steps": 25}, (3, "step"))],
)
def test_a_stage_without_a_length_takes_a_tenth_of_the_run(options, expected):
    loss = Initialised(length=None)
    fitted("module", [loss], limit_train_batches=1, **options)
    assert (loss.stage.length, loss.stage.unit) == expected


def test_a_longer_run_that_is_resumed_keeps_the_length_of_its_stage(tmp_path):
    first = support.module(losses=[Initialised(length=None)])
    support.fit(first, max_epochs=20, limit_train_batches=1, callbacks=[support.SaveEveryStep(tmp_path)])
    loss = Initialised(length=None)
    second = support.module(losses=[loss])
    support.fit(second, max_epochs=40, limit_train_batches=1, ckpt_path=tmp_path / "1.ckpt")
    assert loss.stage.length == 2


def test_a_stage_without_a_length_needs_a_run_with_an_end():
    with pytest.raises(MisconfigurationException, match=r"by default a tenth of the run.*give stage_length"):
        fitted("module", [Initialised(length=None)], max_epochs=-1)


@pytest.mark.parametrize(("length", "unit", "options"), [(2, "epoch", {}), (4, "step", {"max_steps": 4})])
def test_a_stage_that_is_the_whole_run_is_told(length, unit, options):
    with pytest.warns(UserWarning, match=rf"takes {length} {unit}\(s\), which is the whole run.*shorten stage_length"):
        fitted("module", [Initialised(length, unit)], **options)


def test_a_weight_without_effect_is_told():
    with pytest.warns(UserWarning, match=r"weight of 'initialised' has no effect.*give stage_length=0"):
        fitted("module", [Initialised(1, weight=50.0)], max_epochs=2)


def test_a_stage_of_length_zero_is_left_out():
    watch, *_ = fitted("module", [Initialised(length=0)], max_epochs=1)
    assert "student.head.weight" in watch.moved(0, "student")
    assert "losses.initialised.projector.weight" in watch.moved(0, "losses")


def test_a_stage_is_a_function_of_the_moment():
    stage = Stage(3, "step")
    assert [stage.includes(Moment(step, 0)) for step in (0, 2, 3, 9)] == [True, True, False, False]
    with pytest.raises(ValueError, match="expected lr > 0, got 0"):
        Stage(1, lr=0.0)
    with pytest.raises(ValueError, match="whole number length >= 0, got -1"):
        Stage(-1)


@pytest.mark.filterwarnings("ignore:The first stage takes 1:UserWarning")
def test_the_log_tells_the_stage_and_the_main_training_apart():
    logged = [
        set(support.fit(support.module(losses=[Compressed(1)]), max_epochs=epochs).callback_metrics)
        for epochs in (1, 2)
    ]
    assert {name for name in logged[0] if name.startswith("train/")} == {"train/loss", "train/compressed"}
    assert "train/task" in logged[1]
