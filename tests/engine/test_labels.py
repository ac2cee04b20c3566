"""Class ids of every integer type train like int64, and those out of range are told by name."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_kd import DistillationCallback, DistillationModule
from lightning_kd.data import Indexed
from lightning_kd.engine.labels import check_classes, say_of_labels
from lightning_kd.losses import CRDLoss, DKDLoss, KDLoss, MultiLabelKDLoss, MutualLearning, TfKDLoss
from tests import support
from tests.support import UserModule, assert_same_weights

LOSSES = {
    "task": lambda: KDLoss(),
    "dkd": lambda: DKDLoss(),
    "tf_kd": lambda: TfKDLoss(),
    "mutual_learning": lambda: MutualLearning([support.student()]),
    "crd": lambda: CRDLoss("features", "features", dim=4, negatives=8),
}


class Unsupervised(UserModule):
    def training_step(self, batch, batch_idx):
        return self.net(batch[0]).square().mean()


def fit(name, y, door="module"):
    loss, data = LOSSES[name](), TensorDataset(support.data().tensors[0], y)
    loader = DataLoader(Indexed(data) if name == "crd" else data, 8)
    if door == "module":
        task = nn.CrossEntropyLoss() if name == "task" else None
        module, callbacks = DistillationModule(support.student(), support.teacher(), [loss], task_loss=task), []
    else:
        module, callbacks = Unsupervised(support.student()), [DistillationCallback(support.teacher(), [loss])]
    torch.manual_seed(2)
    trainer = support.trainer(max_epochs=1, callbacks=callbacks)
    trainer.fit(module, loader, loader if door == "module" else None)
    return module, {name: value.item() for name, value in trainer.callback_metrics.items()}


@pytest.mark.filterwarnings("ignore:You defined a `validation_step`")
@pytest.mark.parametrize("door", ["module", "callback"])
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32])
def test_other_integers_train_like_int64(name, dtype, door):
    y = support.data().tensors[1]
    module, metrics = fit(name, y.to(dtype), door)
    right, right_metrics = fit(name, y, door)
    assert metrics == right_metrics
    assert_same_weights(module, right)


@pytest.mark.parametrize("name", LOSSES)
def test_two_classes_as_truth_values(name):
    y = support.data().tensors[1] % 2
    module, metrics = fit(name, y.bool())
    right, right_metrics = fit(name, y)
    assert metrics["train/loss"] == right_metrics["train/loss"]
    assert_same_weights(module, right)


@pytest.mark.filterwarnings("ignore:You defined a `validation_step`")
@pytest.mark.parametrize("door", ["module", "callback"])
@pytest.mark.parametrize("name", [name for name in LOSSES if name != "crd"])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("wrong", [4, -1])
def test_an_id_out_of_range_is_named(name, dtype, wrong, door):
    if name == "task" and door == "callback":
        return  # the user's own step
    y = support.data().tensors[1].to(dtype)
    y[5] = wrong
    part = "The task's own loss" if name == "task" else f"Part '{name}'"
    with pytest.raises(
        ValueError, match=rf"{part} reads class ids, and the batch holds {wrong}, but the logits have 4"
    ):
        fit(name, y, door)


def test_a_device_that_has_failed_is_explained():
    error = RuntimeError("CUDA error: device-side assert triggered\nand so on")
    with pytest.raises(RuntimeError, match=r"(?s)mostly because a class id is out of range.*logits have 3 classes"):
        say_of_labels(error, "Part 'dkd'", torch.tensor([3]), torch.zeros(1, 3))


@pytest.mark.parametrize("text", ["another error", "index 9 is out of bounds"])
def test_of_other_errors_nothing_is_said(text):
    say_of_labels(RuntimeError(text), "Part 'dkd'", torch.tensor([2]), torch.zeros(1, 3))


@pytest.mark.parametrize("door", ["module", "callback"])
@pytest.mark.parametrize(
    "target",
    [
        lambda y: (torch.arange(support.CLASSES) <= y[:, None]).long(),
        lambda y: (torch.arange(support.CLASSES) <= y[:, None] + 1).float(),
        lambda y: (torch.arange(support.CLASSES) <= y[:, None] + 1).bool(),
        lambda y: y[:, None] * 0.7 - torch.arange(support.CLASSES),
    ],
    ids=["labels as integers", "labels as floats", "labels as booleans", "values"],
)
def test_a_target_of_labels_or_values_is_refused_by_losses_of_classes(door, target):
    x, y = support.data().tensors
    rows = DataLoader(TensorDataset(x, target(y)), 8)
    module, callbacks = support.through(door)
    if door == "module":
        module.task_loss = nn.MSELoss()
    else:
        module.criterion = nn.MSELoss()
    with pytest.raises(ValueError, match=r"Part 'kd': KDLoss .*MultiLabelKDLoss .*RegressionKDLoss"):
        support.trainer(max_epochs=1, callbacks=callbacks).fit(module, rows, rows)


@pytest.mark.parametrize(
    "target",
    [
        lambda rows: rows,
        lambda rows: rows.long(),
        lambda rows: 0.7 * rows + 0.3 * rows.flip(0),
        lambda rows: rows * 0.9 + 0.1 / support.CLASSES,
        lambda rows: rows.half() * 0.9 + 0.1 / support.CLASSES,
        lambda rows: rows * (torch.arange(len(rows)) % 2)[:, None],
        lambda rows: rows.argmax(1),
    ],
    ids=["one-hot", "integers", "mixup", "smoothed", "in 16 bits", "half without a label", "ids"],
)
def test_distributions_over_the_classes_are_taken(target):
    y = support.data().tensors[1]
    rows = target(nn.functional.one_hot(y, support.CLASSES).float())
    check_classes([("kd", KDLoss())], rows, torch.zeros(len(rows), support.CLASSES))


def test_losses_of_labels_take_labels():
    labels = torch.ones(4, support.CLASSES)
    check_classes([("multi", MultiLabelKDLoss())], labels, torch.zeros(4, support.CLASSES))
    check_classes([("kd", KDLoss(binary=True))], labels[:, :1], torch.zeros(4, 1))


def test_a_validation_tells_labels_that_the_first_rows_did_not():
    """The first samples have one label each."""
    x, y = support.data().tensors
    rows = nn.functional.one_hot(y, support.CLASSES).float()
    rows[4:] = 1.0
    loader = DataLoader(TensorDataset(x, rows), 8)
    module = support.module(task_loss=nn.BCEWithLogitsLoss())
    with pytest.raises(ValueError, match="MultiLabelKDLoss"):
        support.trainer(max_epochs=1).fit(module, loader, loader)


def test_a_cohort_of_single_logits_is_refused():
    x, y = support.data().tensors
    networks = [nn.Sequential(nn.Flatten(), nn.Linear(16, 1)) for _ in range(2)]
    made = DistillationModule(networks[0], None, [MutualLearning(networks[1:])], task_loss=nn.BCEWithLogitsLoss())
    rows = DataLoader(TensorDataset(x, (y[:, None] > 0).float()), 8)
    with pytest.raises(ValueError, match="MutualLearning: a single logit"):
        support.trainer(max_epochs=1).fit(made, rows, rows)


@pytest.mark.parametrize("shape", [(2, 5, 6, 3), (2, 4, 5, 6, 3)])
def test_classes_on_the_last_axis_of_maps_are_refused(shape):
    target = torch.zeros(shape[:-1], dtype=torch.long)
    losses = [("kd", KDLoss())]
    with pytest.raises(ValueError, match=r"have them on the last axis. Override logits_of.*movedim\(-1, 1\)"):
        check_classes(losses, target, torch.zeros(shape))
    check_classes(losses, target, torch.zeros(shape).movedim(-1, 1))
    check_classes([], target, torch.zeros(shape))
