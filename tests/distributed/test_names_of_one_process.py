"""A value that the user logs in one process alone, under one of our names, stops no process."""

import os

import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import nn

from lightning_kd import DistillationCallback, DistillationModule
from lightning_kd.losses import KDLoss
from tests import support
from tests.support import processes


class LogsInOne(support.UserModule):
    """Logs a value of the distillation's name in the first process alone."""

    def __init__(self, net, name):
        super().__init__(net)
        self.name = name

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        if self.global_rank == 0 and self.name.startswith("train"):
            self.log(self.name, 7.0, rank_zero_only=True)
        return loss

    def validation_step(self, batch, batch_idx):
        super().validation_step(batch, batch_idx)
        if self.global_rank == 0 and self.name.startswith("val"):
            self.log(self.name, 7.0, rank_zero_only=True)


class LogsItsLossInOne(DistillationModule):
    """Logs a loss of its own in the first process alone, under the name of the distillation's, which is a mean."""

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        super().validation_step(batch, batch_idx, dataloader_idx)
        if self.global_rank == 0:
            self.log("val/loss", 7.0)


def trained(name):
    if name == "val/loss":
        made, callbacks = (
            LogsItsLossInOne(
                support.student(), support.teacher(), [KDLoss()], task_loss=nn.CrossEntropyLoss(), optimizer=sgd
            ),
            [],
        )
    else:
        made = LogsInOne(support.student(), name)
        callbacks = [DistillationCallback(support.teacher(), [KDLoss()])]
    trainer = support.trainer(
        strategy=DDPStrategy(process_group_backend="gloo"), devices=2, max_epochs=1, callbacks=callbacks
    )
    torch.manual_seed(5)
    trainer.fit(made, support.loader(batch_size=4), support.loader(batch_size=4))
    return {key: value.item() for key, value in trainer.callback_metrics.items()}


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)


def work(rank, folder):
    os.environ.update(LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1", MASTER_PORT=(folder / "port").read_text())
    torch.save({name: trained(name) for name in NAMES}, folder / str(rank))
    processes.leave_group()


NAMES = ("train/kd", "train/loss", "val/agreement", "val/student_accuracy", "val/teacher_accuracy", "val/loss")


@pytest.mark.slow
def test_a_name_of_one_process_stops_none(tmp_path):
    (tmp_path / "port").write_text(support.free_port())
    processes.spawned(work, tmp_path, limit=90)
    one, other = (torch.load(tmp_path / str(rank), weights_only=True) for rank in range(2))
    for name in NAMES:
        assert one[name].pop(name) == 7.0, name
    means = {name: value for name, value in other["train/kd"].items() if not name.startswith("user")}
    for name in NAMES:
        if name.startswith("val"):  # as without the distillation: the user's value is in the process that has logged it
            assert name not in other[name]
        assert {key: value for key, value in other[name].items() if key in means and key != name} == {
            key: value for key, value in means.items() if key != name
        }
