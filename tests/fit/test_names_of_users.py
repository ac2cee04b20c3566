"""A name under which the user logs stays the user's, wherever they log it; ours of that name is left out."""

import copy
import pickle
import warnings

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torchmetrics import MeanMetric

from lightning_kd import DistillationCallback, DistillationModule
from lightning_kd.losses import KDLoss
from tests import support

THEIRS = -7.0
"""What the user logs under each name; nothing of ours is negative."""
TRAINING = {
    "step": ("training_step", {}),
    "step and epoch": ("training_step", {"on_step": True, "on_epoch": True, "prog_bar": True}),
    "epoch mean": ("training_step", {"on_step": False, "on_epoch": True}),
    "batch end": ("on_train_batch_end", {}),
    "epoch end": ("on_train_epoch_end", {}),
    "epoch end on the bar": ("on_train_epoch_end", {"prog_bar": True, "logger": False, "sync_dist": False}),
}
EVALUATION = {
    "step": ("validation_step", {}),
    "step and epoch": ("validation_step", {"on_step": True, "on_epoch": True}),
    "batch start": ("on_validation_batch_start", {}),
    "batch end": ("on_validation_batch_end", {}),
    "epoch end": ("on_validation_epoch_end", {}),
}


def logging(base, hook, names, options, value=THEIRS):
    """A class of users who log each name in one hook, after what the class does there."""

    def and_log(self, *args, **kwargs):
        result = getattr(base, hook)(self, *args, **kwargs)
        for name in names:
            self.log(name, value, **options)
        return result

    return type("User", (base,), {hook: and_log})


def made(door, hook, names, options, **more):
    if door == "callback":
        callback = DistillationCallback(support.teacher(), [KDLoss()], **more)
        return logging(support.UserModule, hook, names, options)(support.student()), [callback]
    user = logging(DistillationModule, hook, names, options)
    return user(support.student(), support.teacher(), [KDLoss()], task_loss=nn.CrossEntropyLoss(), **more), []


def told(seen, name):
    return [str(one.message) for one in seen if f"logs {name!r} itself" in str(one.message)]


def fitted(module, callbacks, **options):
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        trainer = support.fit(module, callbacks=callbacks, log_every_n_steps=1, **options)
    return trainer, seen


@pytest.mark.parametrize("moment", TRAINING)
@pytest.mark.parametrize("door", ["module", "callback"])
def test_a_training_value_of_a_fit_of_one_epoch_stays_theirs(door, moment):
    hook, options = TRAINING[moment]
    trainer, _ = fitted(*made(door, hook, ["train/task"], options), max_epochs=1)
    assert trainer.callback_metrics["train/task"] == THEIRS


@pytest.mark.parametrize("moment", TRAINING)
@pytest.mark.parametrize("door", ["module", "callback"])
def test_a_training_value_of_the_user_stays_theirs(door, moment, tmp_path):
    hook, options = TRAINING[moment]
    names, logger = ["train/loss", "train/kd"], CSVLogger(tmp_path)
    trainer, seen = fitted(*made(door, hook, names, options), logger=logger, max_epochs=2)
    for name in names:
        assert trainer.callback_metrics[name] == THEIRS
        assert len(told(seen, name)) == 1
        first = 3 if "epoch end" in moment or moment == "batch end" else 0  # lines of ours before theirs came
        mine = [row[name] for row in support.rows(logger) if name in row and row["step"] >= first]
        assert set(mine) <= {THEIRS}
    assert trainer.progress_bar_metrics.get("train/loss", THEIRS) == THEIRS
    assert trainer.callback_metrics["train/task"] > 0
    assert not told(seen, "train/task")


@pytest.mark.parametrize(("moment", "sanity"), [*((moment, 0) for moment in EVALUATION), ("epoch end", 2)])
@pytest.mark.parametrize("door", ["module", "callback"])
def test_a_value_of_the_users_validation_stays_theirs(door, moment, sanity, tmp_path):
    hook, options = EVALUATION[moment]
    names, logger = ["val/agreement", "val/teacher_accuracy"], CSVLogger(tmp_path)
    names += ["val/accuracy", "val/loss"] if door == "module" else []
    keep = ModelCheckpoint(tmp_path, monitor="val/agreement", mode="min")
    module, callbacks = made(door, hook, names, options)
    trainer, seen = fitted(
        module,
        [*callbacks, keep],
        logger=logger,
        max_epochs=2,
        num_sanity_val_steps=sanity,
        enable_checkpointing=True,
    )
    shown = "_epoch" if moment == "step and epoch" else ""
    for name in names:
        assert trainer.callback_metrics[name] == THEIRS
        assert len(told(seen, name)) == 1
        assert {row[name] for row in support.rows(logger) if name in row} <= {THEIRS}
        assert trainer.logged_metrics[name + shown] == THEIRS
    assert keep.best_model_score == THEIRS
    assert 0 <= module.run.results["agreement"] <= 1 if door == "module" else True
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a run of its own says so, too
        found = support.trainer(callbacks=callbacks).validate(module, support.loader(), verbose=False)
    for name in names:
        assert found[0][name + shown] == THEIRS


@pytest.mark.parametrize("moment", ["step", "epoch end"])
@pytest.mark.parametrize("door", ["module", "callback"])
def test_of_several_loaders_only_those_names_are_left_out_that_the_user_logs(door, moment):
    hook, options = EVALUATION[moment]
    module, callbacks = made(door, hook, ["val/agreement"], options)
    several = module.validation_step
    module.validation_step = lambda batch, batch_idx, dataloader_idx=0: several(batch, batch_idx)
    trainer, seen = fitted(module, callbacks, val=[support.loader(), support.loader(count=16)], max_epochs=2)
    for loader in (0, 1):
        value = trainer.callback_metrics[f"val/agreement/dataloader_idx_{loader}"]
        assert value == THEIRS if moment == "step" else 0 <= value <= 1
    assert len(told(seen, "val/agreement")) == (moment == "step")
    if moment == "epoch end":
        assert trainer.callback_metrics["val/agreement"] == THEIRS


def test_a_metric_object_of_the_user_stays_theirs(tmp_path):
    class User(support.UserModule):
        def __init__(self, net):
            super().__init__(net)
            self.mine = MeanMetric()

        def validation_step(self, batch, batch_idx):
            super().validation_step(batch, batch_idx)
            self.mine.update(THEIRS)
            self.log_dict({"val/agreement": self.mine})

    callback = DistillationCallback(support.teacher(), [KDLoss()])
    trainer, seen = fitted(User(support.student()), [callback], max_epochs=2)
    assert trainer.callback_metrics["val/agreement"] == THEIRS
    assert len(told(seen, "val/agreement")) == 1


def test_what_another_callback_logs_is_the_users_too():
    class Other(Callback):
        def on_train_batch_start(self, trainer, pl_module, *_):
            pl_module.log("train/kd", THEIRS)

    callback = DistillationCallback(support.teacher(), [KDLoss()])
    trainer, seen = fitted(support.UserModule(support.student()), [callback, Other()], max_epochs=1)
    assert trainer.callback_metrics["train/kd"] == THEIRS
    assert len(told(seen, "train/kd")) == 1


def test_a_metric_that_was_asked_for_gives_way_too():
    hook, options = EVALUATION["step"]
    module, callbacks = made("callback", hook, ["val/mean"], options, metrics={"mean": _Share()})
    trainer, seen = fitted(module, callbacks, max_epochs=1)
    assert trainer.callback_metrics["val/mean"] == THEIRS
    assert len(told(seen, "val/mean")) == 1
    assert trainer.callback_metrics["val/teacher_mean"] >= 0


class _Share(MeanMetric):
    def update(self, logits, target):
        super().update((logits.argmax(1) == target).float())


@pytest.mark.parametrize("door", ["module", "callback"])
def test_other_names_are_as_ever_and_nothing_is_left_on_the_module(door):
    module, callbacks = made(door, "training_step", ["train/own"], {})
    before = set(vars(module))
    trainer, seen = fitted(module, callbacks, max_epochs=1)
    assert {"train/loss", "train/kd", "train/task", "val/agreement"} <= set(trainer.callback_metrics)
    assert not [one for one in seen if "itself" in str(one.message)]
    assert not (set(vars(module)) - before) & {"log", "on_validation_batch_end", "on_test_batch_end"}


def test_the_warning_names_what_is_left_out_and_the_remedy():
    module, callbacks = made("callback", "training_step", ["train/loss"], {})
    _, seen = fitted(module, callbacks, max_epochs=1)
    assert told(seen, "train/loss") == [
        "User logs 'train/loss' itself, so the distillation's value of that name is left out. To have both, log yours "
        "under another name."
    ]


def test_a_test_that_runs_the_validation_step_logs_its_names():
    class User(DistillationModule):
        def test_step(self, batch, batch_idx):
            self.validation_step(batch, batch_idx)

    module = User(support.student(), support.teacher(), [KDLoss()], task_loss=nn.CrossEntropyLoss())
    found = support.trainer().test(module, support.loader(), verbose=False)[0]
    assert {"val/loss", "val/agreement", "val/accuracy"} <= set(found)


def test_a_loss_of_the_user_between_two_validations_of_one_epoch_stays_theirs():
    module, callbacks = made("callback", "training_step", ["train/loss"], {"on_step": True, "on_epoch": True})
    seen = []

    class Watch(Callback):
        def on_validation_end(self, trainer, pl_module):
            seen.append(trainer.callback_metrics.get("train/loss"))

    fitted(module, [*callbacks, Watch()], max_epochs=1, val_check_interval=1, num_sanity_val_steps=0)
    assert len(seen) == 3
    assert all(torch.as_tensor(value) == THEIRS for value in seen)


def test_a_copy_that_was_made_in_the_middle_of_a_fit_logs_by_itself():
    class Copies(Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            self.copies = [copy.deepcopy(pl_module), pickle.loads(pickle.dumps(pl_module))]

    module = DistillationModule(support.student(), support.teacher(), [KDLoss()], task_loss=nn.CrossEntropyLoss())
    copies = Copies()
    fitted(module, [copies], max_epochs=1)
    for copied in copies.copies:
        trainer, _ = fitted(copied, [], max_epochs=1)
        assert {"train/kd", "val/agreement", "val/loss"} <= set(trainer.callback_metrics)
