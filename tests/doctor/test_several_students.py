"""A look at several students shows of each what a look at it alone shows."""

import copy

import pytest
import torch
from lightning.pytorch import LightningDataModule, Trainer
from torch import nn

from lightning_kd import DistillationModule
from lightning_kd.doctor.visit import visit
from lightning_kd.losses import HintLoss, KDLoss

from .conftest import CLASSES, data


class Rows(LightningDataModule):
    def train_dataloader(self):
        return data(rows=128, batch_size=32)


def network(width):
    torch.manual_seed(width)
    return nn.Sequential(nn.Linear(CLASSES, width), nn.ReLU(), nn.Linear(width, CLASSES))


LOSSES = {
    "wide": lambda: [KDLoss(2.0, weight=0.5), HintLoss("0", "0")],
    "thin": lambda: [KDLoss(7.0)],
}
WIDTHS = {"wide": 16, "thin": 3}


def far_teacher():
    """A network that has seen smaller numbers in training, as its statistics tell."""
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(8)
    norm.num_batches_tracked.fill_(1)
    norm.running_var.fill_(1e-8)
    return nn.Sequential(nn.Linear(CLASSES, 8), norm, nn.Linear(8, CLASSES))


def seen(module, runs):
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(max_epochs=1, accelerator="cpu", enable_model_summary=False, limit_val_batches=0, **quiet)
    return visit(runs, module, Rows(), trainer, batches=3, fit_steps=5)


@pytest.fixture
def of_all():
    teacher = far_teacher()
    students = {name: network(width) for name, width in WIDTHS.items()}
    alone = {name: (copy.deepcopy(one), copy.deepcopy(teacher)) for name, one in students.items()}
    task = {"task_loss": nn.CrossEntropyLoss(), "task_weight": 0.3}
    losses = {name: make() for name, make in LOSSES.items()}
    module = DistillationModule(students=students, teacher=teacher, losses=losses, **task)
    singles = {name: DistillationModule(*alone[name], LOSSES[name](), **task) for name in WIDTHS}
    return module, singles


@pytest.mark.filterwarnings("ignore:The teacher's first batch normalisation")
@pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`")
@pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers")
@pytest.mark.filterwarnings("ignore:The number of training batches")
@pytest.mark.parametrize("names", [["wide", "thin"], ["thin"], ["wide"]])
def test_each_is_seen_as_it_would_be_alone(names, of_all):
    module, singles = of_all
    before = copy.deepcopy(module.state_dict())
    found = seen(module, {name: module.members[name].run for name in names})
    assert list(found) == names
    for name, report in found.items():
        (alone,) = seen(singles[name], {"": singles[name].run}).values()
        assert report.sizes == alone.sizes
        assert report.rows == alone.rows == 96
        assert (report.accuracies, report.entropies, report.by_heart) == (
            alone.accuracies,
            alone.entropies,
            alone.by_heart,
        )
        assert list(report.entropies) == [{"wide": 2.0, "thin": 7.0}[name]]
        assert [part.name for part in report.parts] == ["task", *(["kd", "hint"] if name == "wide" else ["kd"])]
        # a hint's projector has random weights; by text, since a cosine may be NaN
        own, its = ([str(part) for part in one.parts if part.name != "hint"] for one in (report, alone))
        assert own == its
        assert [one.name for one in report.findings] == [one.name for one in alone.findings]
        assert "scale of the inputs" in [one.name for one in report.findings]
    after = {key: value for key, value in module.state_dict().items() if key in before}
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert "training_step" not in vars(module)
