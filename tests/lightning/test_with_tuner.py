"""Lightning's tuners: what they find is what training uses, and nothing else of their trials remains."""

from functools import partial

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningDataModule
from lightning.pytorch.callbacks import BatchSizeFinder, LearningRateFinder
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.tuner import Tuner
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, OneCycleLR, ReduceLROnPlateau, StepLR
from torch.utils.data import DataLoader

from lightning_kd import BornAgain
from lightning_kd.data import Indexed
from lightning_kd.schedules import LinearSchedule
from tests import support

DOORS = ["module", "callback"]
PARTS = {
    "projector": support.default_losses,
    "schedule": lambda: [support.KDLoss(weight=LinearSchedule(0.1, 1.0, length=5, unit="step"))],
    "bank": lambda: [support.default_loss("CRDLoss")],
    "stage": lambda: [support.default_loss("FTLoss")],
}


def finder(steps=15, **options):
    return LearningRateFinder(**({"min_lr": 1e-4, "max_lr": 1.0, "num_training_steps": steps} | options))


def rows(batch_size=8):
    # not a DataLoader, which draws a random number when Lightning looks at it, at other times after a search
    data = Indexed(support.data())
    return support.Batches(DataLoader(data, batch_size=batch_size), dataset=data)


def staged_nets():
    return [support.seeded(partial(support.StagedNet, width), width) for width in (3, 5)]


class Rates(Callback):
    """Remembers the learning rates of every step."""

    def __init__(self):
        self.seen = []

    def on_train_batch_start(self, trainer, *_):
        self.seen.append([group["lr"] for group in trainer.optimizers[0].param_groups])


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("part", PARTS)
def test_a_learning_rate_search_leaves_no_trace(part, door, tmp_path):
    def fitted(name, *tuners):
        learner, guide = (support.student(0.5), support.teacher()) if part == "projector" else staged_nets()
        torch.manual_seed(5)
        made, doors = support.through(door, learner, guide=guide, losses=PARTS[part]())
        logger = CSVLogger(tmp_path, name)
        options = {"logger": logger, "log_every_n_steps": 2, "max_epochs": 6, "default_root_dir": tmp_path}
        support.fit(made, train=rows(), callbacks=[*doors, *tuners], **options)
        logger.save()
        return learner, doors[0].losses if doors else made.losses, (tmp_path / name / "version_0/metrics.csv")

    search = finder(update_attr=False)
    plain, searched = fitted("plain"), fitted("searched", search)
    rates = search.optimal_lr.results["lr"]
    assert rates == sorted(rates)
    assert rates[-1] > 0.1
    support.assert_same_weights(plain[0], searched[0])
    support.assert_same_weights(plain[1], searched[1])
    assert plain[2].read_text() == searched[2].read_text()


def test_a_search_ends_no_generation(tmp_path):
    def fitted(*tuners):
        made, born_again = support.module(teacher=None), BornAgain(generations=2)
        support.fit(made, train=rows(), callbacks=[born_again, *tuners], max_epochs=8, default_root_dir=tmp_path)
        return made

    support.assert_same_weights(fitted().student, fitted(finder(update_attr=False)).student)


@pytest.mark.parametrize(
    "scheduler",
    [
        None,
        partial(StepLR, step_size=2, gamma=0.5),
        partial(CosineAnnealingLR, T_max=8),
        partial(LambdaLR, lr_lambda=lambda epoch: 0.1 + epoch),
    ],
)
def test_the_found_rate_is_that_of_training_under_every_schedule(scheduler, tmp_path):
    made, search, rates = support.module(lr_scheduler=scheduler), finder(), Rates()
    support.fit(made, callbacks=[search, rates], max_epochs=8, default_root_dir=tmp_path)
    found = search.optimal_lr.suggestion()
    assert found == made.lr
    assert found not in (None, 0.1)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=found)
    expected, schedule = [], scheduler and scheduler(optimizer)
    for _ in range(8):
        expected += 3 * [optimizer.param_groups[0]["lr"]]
        optimizer.step()
        if schedule:
            schedule.step()
    assert [rate for (rate,) in rates.seen] == pytest.approx(expected)


def test_the_tuner_before_a_fit_sets_the_rate_and_nothing_else(tmp_path):
    tuned, plain = (support.module(support.student(0.5), losses=[support.KDLoss()]) for _ in range(2))
    before = support.snapshot(tuned.student)
    search = Tuner(support.trainer(max_epochs=10, default_root_dir=tmp_path)).lr_find(
        tuned, support.loader(), support.loader(), min_lr=1e-4, num_training=20
    )
    support.assert_unchanged(tuned.student, before)
    assert tuned.lr == search.suggestion()
    plain.make_optimizer = partial(torch.optim.SGD, lr=search.suggestion(), momentum=0.9)
    for made in (plain, tuned):  # fit seeds: the random state of the search must not come back
        assert support.fit(made).callback_metrics["val/teacher_accuracy"] == 0.25
    support.assert_same_weights(tuned.student, plain.student)


@pytest.mark.parametrize("scheduler", [None, partial(StepLR, step_size=1), partial(ReduceLROnPlateau, patience=5)])
def test_a_rate_set_by_hand_takes_the_place_of_the_optimizers_own(scheduler):
    by_hand = support.module()
    by_hand.lr, by_hand.make_lr_scheduler = 0.03, scheduler
    made = by_hand.configure_optimizers()
    optimizer = made["optimizer"] if scheduler else made
    assert [group["lr"] for group in optimizer.param_groups] == [0.03]
    optimizer.add_param_group({"params": [torch.nn.Parameter(torch.zeros(1))]})
    assert optimizer.param_groups[1]["lr"] == 0.03


def test_a_rate_that_a_scheduler_would_overrule_is_refused(tmp_path):
    made = support.module(lr_scheduler=partial(OneCycleLR, max_lr=0.1, total_steps=30), lr_interval="step")
    with pytest.raises(MisconfigurationException, match=r"OneCycleLR sets the learning rates itself; give the sched"):
        support.fit(made, callbacks=[finder()], max_epochs=8, default_root_dir=tmp_path)


@pytest.mark.parametrize("door", DOORS)
def test_rates_at_which_the_loss_is_not_finite_do_not_end_the_search(door, tmp_path):
    made, doors = support.through(door)
    search = finder(min_lr=1e-3, max_lr=1e30, early_stop_threshold=None, update_attr=False)
    support.fit(made, callbacks=[*doors, search], max_epochs=8, default_root_dir=tmp_path)
    assert not all(map(torch.isfinite, torch.tensor(search.optimal_lr.results["loss"])))
    assert all(p.isfinite().all() for p in made.parameters())


def test_through_the_callback_the_losses_learn_at_the_rate_that_was_found(tmp_path):
    class Narrow(support.UserModule):
        lr = 0.1

        def configure_optimizers(self):
            return torch.optim.SGD(self.net.parameters(), lr=self.lr, momentum=0.9)

    user, search, rates = Narrow(support.student()), finder(), Rates()
    door = support.DistillationCallback(support.teacher(), support.default_losses())
    trainer = support.fit(user, callbacks=[door, search, rates], max_epochs=8, default_root_dir=tmp_path)
    assert set(map(tuple, rates.seen)) == {(user.lr,)}
    (group,) = trainer.optimizers[0].param_groups
    assert {id(p) for p in door.losses.parameters()} <= {id(p) for p in group["params"]}
    assert user.lr == search.optimal_lr.suggestion() != 0.1


@pytest.mark.parametrize("door", DOORS)
def test_the_teacher_is_in_place_before_the_first_trial(door, tmp_path):
    made, doors = support.through(door)
    search = finder(update_attr=False)
    support.fit(made, callbacks=[*doors, search], max_epochs=8, precision="bf16-true", default_root_dir=tmp_path)
    assert len(search.optimal_lr.results["loss"]) > 10


class Sized(LightningDataModule):
    def __init__(self, batch_size):
        super().__init__()
        self.batch_size = batch_size

    def train_dataloader(self):
        return support.seeded(partial(rows, self.batch_size), 0)

    def val_dataloader(self):
        return support.seeded(rows, 0)


@pytest.mark.parametrize("door", [DOORS[0], pytest.param(DOORS[1], marks=pytest.mark.slow)])
@pytest.mark.parametrize("part", PARTS)
def test_a_batch_size_search_sets_the_batch_size_and_leaves_no_trace(part, door, tmp_path):
    def fitted(data, *tuners):
        learner, guide = (support.student(0.5), support.teacher()) if part == "projector" else staged_nets()
        made, doors = support.through(door, learner, guide=guide, losses=PARTS[part]())
        trainer = support.trainer(callbacks=[*doors, *tuners], max_epochs=4, default_root_dir=tmp_path)
        torch.manual_seed(11)
        trainer.fit(made, datamodule=data)
        return learner, doors[0].losses if doors else made.losses

    data = Sized(2)
    searched, plain = fitted(data, BatchSizeFinder(init_val=2, max_trials=3)), fitted(Sized(8))
    assert data.batch_size == 8
    support.assert_same_weights(plain[0], searched[0])
    support.assert_same_weights(plain[1], searched[1])


@pytest.mark.parametrize("door", DOORS)
def test_the_tuner_scales_the_batch_size_before_a_fit(door, tmp_path):
    data, learner = Sized(2), support.student()
    made, doors = support.through(door, learner)
    before = support.snapshot(learner)
    quiet = support.trainer(callbacks=doors, max_epochs=4, default_root_dir=tmp_path)
    assert Tuner(quiet).scale_batch_size(made, datamodule=data, init_val=2, max_trials=3) == data.batch_size == 8
    support.assert_unchanged(learner, before)
