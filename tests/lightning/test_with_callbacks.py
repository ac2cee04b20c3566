"""Lightning's own callbacks through both doors: each does to a distilled student exactly what it promises."""

import logging
from functools import partial

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import (
    EarlyStopping,
    EMAWeightAveraging,
    GradientAccumulationScheduler,
    LearningRateMonitor,
    ModelCheckpoint,
    ModelSummary,
    OnExceptionCheckpoint,
    StochasticWeightAveraging,
)
from lightning.pytorch.loggers import CSVLogger
from torch.optim.lr_scheduler import StepLR

from lightning_kd import DistillationModule
from lightning_kd.losses import KDLoss
from tests import support

DOORS = ["module", "callback"]


def through(door):
    """Return (module to fit, its student, its losses, the engine once it is set up, the door's callbacks)."""
    learner = support.student()
    made, callbacks = support.through(door, learner)
    owner = callbacks[0] if callbacks else made
    return made, learner, owner.losses, lambda: owner.run.step, callbacks


def agreement(net):
    x = support.data().tensors[0]
    with torch.no_grad():
        return (net.eval()(x).argmax(1) == support.teacher().eval()(x).argmax(1)).float().mean().item()


class Weights(Callback):
    """Remembers the parameters after every step, and at the start of every epoch."""

    def __init__(self, *modules):
        self.modules, self.steps, self.epochs = modules, [], []

    def now(self):
        return [p.detach().clone() for module in self.modules for p in module.parameters()]

    def on_train_epoch_start(self, *_):
        self.epochs.append(self.now())

    def on_train_batch_end(self, *_):
        self.steps.append(self.now())


class Means(Callback):
    """Remembers the training means that callbacks are shown when a validation ends, and after each epoch."""

    def __init__(self):
        self.at_validation, self.at_end = [], []

    def on_validation_end(self, trainer, *_):
        self.at_validation.append(self._shown(trainer))

    def on_train_epoch_start(self, trainer, *_):
        if trainer.current_epoch:
            self.at_end.append(self._shown(trainer))

    def on_train_end(self, trainer, *_):
        self.at_end.append(self._shown(trainer))

    @staticmethod
    def _shown(trainer):
        return {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("train/")}


@pytest.mark.parametrize(("door", "monitor"), [("module", "val/accuracy"), ("callback", "val/agreement")])
def test_the_best_checkpoint_is_that_of_the_best_validation(door, monitor, tmp_path):
    class Scores(Callback):
        seen = []

        def on_validation_end(self, trainer, *_):
            self.seen.append(float(trainer.callback_metrics[monitor]))

    made, learner, *_, callbacks = through(door)
    saver, scores = ModelCheckpoint(tmp_path, monitor=monitor, mode="max"), Scores()
    every = ModelCheckpoint(tmp_path / "every", save_last=True)
    support.fit(made, callbacks=[scores, *callbacks, saver, every], enable_checkpointing=True, max_epochs=5)
    assert saver.best_model_score == max(scores.seen)
    assert len(set(scores.seen)) > 2
    other = support.student()
    if door == "module":
        DistillationModule.load_from_checkpoint(saver.best_model_path, student=other, teacher=support.teacher())
        x, y = support.data().tensors
        assert (other.eval()(x).argmax(1) == y).float().mean().item() == pytest.approx(max(scores.seen))
        DistillationModule.load_from_checkpoint(every.last_model_path, student=other, teacher=support.teacher())
    else:
        support.UserModule.load_from_checkpoint(saver.best_model_path, net=other)
        assert agreement(other) == pytest.approx(max(scores.seen))
        support.UserModule.load_from_checkpoint(every.last_model_path, net=other)
    support.assert_same_weights(other, learner)


@pytest.mark.parametrize("door", DOORS)
def test_a_checkpoint_can_watch_a_training_loss_with_validation_or_without(door, tmp_path):
    for name, options in (("with", {}), ("without", {"limit_val_batches": 0})):
        made, *_, callbacks = through(door)
        saver, means = ModelCheckpoint(tmp_path / name, monitor="train/kd", save_top_k=2), Means()
        options |= {"enable_checkpointing": True, "max_epochs": 4, "log_every_n_steps": 50}
        support.fit(made, callbacks=[means, *callbacks, saver], **options)
        losses = sorted(epoch["train/kd"] for epoch in means.at_end)
        assert sorted(map(float, saver.best_k_models.values())) == pytest.approx(losses[:2])


@pytest.mark.parametrize("door", DOORS)
def test_a_validation_shows_the_means_of_the_epoch_so_far(door):
    made, *_, callbacks = through(door)
    means = Means()
    support.fit(made, callbacks=[means, *callbacks], max_epochs=2, log_every_n_steps=50, num_sanity_val_steps=2)
    sanity, *ends = means.at_validation
    assert sanity == {}
    for shown, final in zip(ends, means.at_end, strict=True):
        assert shown == pytest.approx(final)
        assert shown.keys() == {"train/loss", "train/task", "train/kd", "train/hint"}


@pytest.mark.parametrize("monitor", ["train/loss", "train/kd", "val/agreement"])
@pytest.mark.parametrize("door", DOORS)
def test_early_stopping_stops_when_a_part_no_longer_improves(door, monitor):
    nets = [support.seeded(partial(support.StagedNet, width, norm=False), width) for width in (3, 5)]
    made, callbacks = support.through(door, nets[0], guide=nets[1], losses=[KDLoss()])
    made.configure_optimizers = lambda: torch.optim.SGD(made.parameters(), lr=0.0)  # so nothing improves
    stop = EarlyStopping(monitor, patience=2, mode="max" if monitor.startswith("val") else "min")
    trainer = support.fit(made, train=support.loader(), callbacks=[*callbacks, stop], max_epochs=9)
    assert stop.stopped_epoch == 2
    assert trainer.current_epoch == 3


@pytest.mark.parametrize("door", DOORS)
def test_the_learning_rate_monitor_logs_the_schedule(door, tmp_path):
    made, *_, callbacks = through(door)
    if door == "module":
        made.make_lr_scheduler = partial(StepLR, step_size=1, gamma=0.5)
    else:
        optimizer = support.UserModule.configure_optimizers
        made.configure_optimizers = lambda: (lambda o: ([o], [StepLR(o, 1, 0.5)]))(optimizer(made))
    logger = CSVLogger(tmp_path)
    support.fit(
        made, callbacks=[*callbacks, LearningRateMonitor("step")], logger=logger, max_epochs=3, log_every_n_steps=1
    )
    rates = [row["lr-SGD"] for row in support.rows(logger) if "lr-SGD" in row]
    assert rates == pytest.approx(3 * [0.1] + 3 * [0.05] + 3 * [0.025])


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("door", DOORS)
def test_the_moving_average_is_right_and_swapped_in(door, first):
    made, learner, losses, _, callbacks = through(door)
    ema, weights = EMAWeightAveraging(decay=0.5), Weights(learner, losses)
    order = [ema, *callbacks] if first else [*callbacks, ema]
    trainer = support.fit(made, callbacks=[weights, *order], max_epochs=2)
    expected = weights.steps[0]
    for step in weights.steps[1:]:
        expected = [0.5 * old + 0.5 * new for old, new in zip(expected, step, strict=True)]
    torch.testing.assert_close(weights.now(), expected)
    assert trainer.callback_metrics["val/agreement"].item() == pytest.approx(agreement(learner))


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("door", DOORS)
def test_the_averaged_copy_does_not_write_into_the_students_record(door, first):
    class Call(Callback):
        seen = []

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            twin = getattr(ema._average_model.module, "student" if door == "module" else "net")
            with distiller().capture.recording() as record:
                twin(batch[0])
                self.seen.append((record.called, list(record.features)))
                distiller().capture.call(batch[0])
                self.seen.append((record.called, list(record.features)))

    made, _, _, distiller, callbacks = through(door)
    ema, call = EMAWeightAveraging(decay=0.5), Call()
    order = [ema, *callbacks] if first else [*callbacks, ema]
    support.fit(made, callbacks=[*order, call], max_epochs=1)
    assert call.seen == 3 * [(False, []), (True, ["features"])]


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("door", DOORS)
def test_stochastic_weight_averaging_leaves_the_mean_of_the_epochs(door, first):
    made, learner, losses, _, callbacks = through(door)
    swa, weights = StochasticWeightAveraging(swa_lrs=0.05, swa_epoch_start=2), Weights(learner, losses)
    order = [swa, *callbacks] if first else [*callbacks, swa]
    support.fit(made, train=support.loader(), callbacks=[weights, *order], max_epochs=4)
    assert len(weights.epochs) == 5  # one more, for the BatchNorm statistics
    expected = [torch.stack(same).mean(0) for same in zip(*weights.epochs[1:4], strict=True)]
    torch.testing.assert_close(weights.now(), expected)
    with torch.no_grad():
        means = torch.stack([learner.features[0](x).mean((0, 2, 3)) for x, _ in support.loader()])
    torch.testing.assert_close(learner.features[1].running_mean, means.mean(0))


@pytest.mark.parametrize("door", DOORS)
def test_scheduled_accumulation_equals_a_loop_that_accumulates(door):
    made, learner, losses, _, callbacks = through(door)
    batches = list(support.loader())
    scheduler = GradientAccumulationScheduler({0: 1, 1: 3})
    support.fit(made, train=support.batches(*batches), callbacks=[*callbacks, scheduler], max_epochs=2)

    by_hand = support.module()
    torch.manual_seed(11)
    by_hand.prepare(batches[0])
    optimizer = by_hand.configure_optimizers()
    for together in (1, 3):
        for i, batch in enumerate(batches):
            (by_hand.training_step(batch, i) / together).backward()
            if (i + 1) % together == 0:
                optimizer.step()
                optimizer.zero_grad()
    support.assert_same_weights(learner, by_hand.student)
    support.assert_same_weights(losses, by_hand.losses)


# what Lightning says of every fit with this callback that names no checkpoint
@pytest.mark.filterwarnings("ignore:.*was called without a model.*:UserWarning")
@pytest.mark.filterwarnings("ignore:.*there is no last checkpoint available.*:UserWarning")
@pytest.mark.parametrize("step", [1, 3, 4, 5])
@pytest.mark.parametrize("door", DOORS)
def test_the_checkpoint_of_an_exception_is_whole_and_goes_on_as_if_there_had_been_none(door, step, tmp_path):
    def fitted(fails_at=None, **options):
        made, learner, losses, _, callbacks = through(door)
        learner.dropout.p = 0.5
        training_step = type(made).training_step

        class Failing(type(made)):
            def training_step(self, batch, batch_idx):
                if self.global_step == fails_at:
                    raise ArithmeticError("at this step")
                return training_step(self, batch, batch_idx)

        made.__class__ = Failing
        saver = OnExceptionCheckpoint(tmp_path, "broken")
        options |= {"callbacks": [*callbacks, saver], "enable_checkpointing": True, "default_root_dir": tmp_path}
        support.fit(made, train=support.Batches(support.loader()), val=support.Batches(support.loader()), **options)
        return learner, losses

    whole = fitted()
    with pytest.raises(ArithmeticError, match="at this step"):
        fitted(fails_at=step)
    resumed = fitted(ckpt_path=tmp_path / "broken.ckpt", seed=99)
    for one, other in zip(whole, resumed, strict=True):
        support.assert_same_weights(one, other)


@pytest.mark.parametrize("door", DOORS)
def test_the_summary_lists_student_and_losses_and_names_the_teacher(door, caplog):
    caplog.set_level(logging.INFO, logger="lightning.pytorch")  # scripts that other tests run have set it
    made, *_, callbacks = through(door)
    support.fit(made, callbacks=[*callbacks, ModelSummary()], enable_model_summary=True, fast_dev_run=True)
    cells = [[cell.strip() for cell in line.split("|")] for line in caplog.text.splitlines()]
    table = {row[1]: row[2:4] for row in cells if len(row) > 4}
    assert table["student" if door == "module" else "net"] == ["ConvNet", "232"]
    assert table["losses" if door == "module" else "_kd"] == ["NamedLosses", "32"]
    assert "The teacher, ConvNet with 612 parameters, is frozen and no part of the module" in caplog.text


def test_without_a_summary_the_teacher_is_not_told(caplog):
    caplog.set_level(logging.INFO, logger="lightning.pytorch")
    support.fit(support.module(), fast_dev_run=True, callbacks=[Means()])
    assert "The teacher" not in caplog.text
