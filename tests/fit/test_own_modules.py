"""Modules that users derive from DistillationModule: optimizers by hand, and classes of their own in YAML."""

from functools import partial

import pytest
import torch
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.optim.lr_scheduler import StepLR

from lightning_kd import DistillationModule
from lightning_kd.losses import HintLoss, KDLoss
from lightning_kd.schedules import LinearSchedule
from tests import support


class Manual(DistillationModule):
    """Optimizes by hand, as Lightning's documentation shows."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        optimizers = self.optimizers()
        optimizers = optimizers if isinstance(optimizers, list) else [optimizers]
        for optimizer in optimizers:
            optimizer.zero_grad()
        self.manual_backward(loss)
        for optimizer in optimizers:
            optimizer.step()
        schedulers = self.lr_schedulers()
        if schedulers is not None and self.trainer.is_last_batch:
            schedulers.step()
        return loss


class TwoOptimizers(Manual):
    """Gives the losses' parameters an optimizer of their own."""

    def configure_optimizers(self):
        return [torch.optim.SGD(part.parameters(), lr=0.1, momentum=0.9) for part in (self.student, self.losses)]


def options():
    return {
        "losses": [
            KDLoss(temperature=2.0, weight=LinearSchedule(0.0, 1.0, length=4, unit="epoch")),
            HintLoss("features", "features"),
        ],
        "task_loss": nn.CrossEntropyLoss(),
        "optimizer": partial(torch.optim.SGD, lr=0.1, momentum=0.9),
    }


@pytest.mark.parametrize("scheduler", [None, partial(StepLR, step_size=1, gamma=0.5)])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_optimizing_by_hand_trains_and_logs_as_the_trainer_does(precision, scheduler, tmp_path):
    made = []
    for i, cls in enumerate((DistillationModule, Manual)):
        module = cls(support.student(0.5), support.teacher(), **options(), lr_scheduler=scheduler)
        logger = CSVLogger(tmp_path, str(i))
        support.fit(module, logger=logger, max_epochs=4, precision=precision)
        made.append((module, support.rows(logger)))
    (automatic, rows), (manual, its_rows) = made
    support.assert_same_weights(automatic, manual)
    assert rows == its_rows
    assert manual.losses["kd"].weight_now == 0.75


def test_several_optimizers_train_as_one_over_all(tmp_path):
    one = DistillationModule(support.student(0.5), support.teacher(), **options())
    two = TwoOptimizers(support.student(0.5), support.teacher(), **options())
    logger = CSVLogger(tmp_path)
    support.fit(one, max_epochs=2)
    trainer = support.fit(two, max_epochs=2, logger=logger, log_every_n_steps=4)
    support.assert_same_weights(one, two)
    # Lightning counts the steps of both optimizers: a batch is two, an epoch is six
    assert [row["step"] for row in support.rows(logger) if "train/loss" in row] == [3, 5, 7, 11]
    expected = [one.trainer.callback_metrics[name] for name in ("train/loss", "train/kd", "val/accuracy")]
    assert [trainer.callback_metrics[name] for name in ("train/loss", "train/kd", "val/accuracy")] == expected


class Scaled(DistillationModule):
    """A user's own class with an option of its own."""

    def __init__(self, student: nn.Module, teacher: nn.Module, losses: list[support.DistillationLoss], scale: float):
        super().__init__(student, teacher, losses)
        self.scale = scale

    def training_step(self, batch, batch_idx):
        return self.scale * super().training_step(batch, batch_idx)


CONFIG = """
model:
  class_path: tests.fit.test_own_modules.Scaled
  init_args:
    scale: 3.0
    student: {class_path: tests.support.ConvNet, init_args: {width: 3}}
    teacher: {class_path: tests.support.ConvNet, init_args: {width: 8}}
    losses:
      - class_path: KDLoss
        init_args: {temperature: 2.0}
trainer:
  max_epochs: 1
  accelerator: cpu
  logger: false
  enable_progress_bar: false
  enable_model_summary: false
"""


@pytest.mark.filterwarnings("ignore:LightningCLI's args parameter:UserWarning")
def test_a_class_of_ones_own_runs_from_yaml_and_loads_from_its_checkpoint(tmp_path):
    (tmp_path / "config.yaml").write_text(CONFIG)
    arguments = [f"--config={tmp_path / 'config.yaml'}", f"--trainer.default_root_dir={tmp_path}"]
    cli = LightningCLI(
        DistillationModule,
        subclass_mode_model=True,
        args=arguments,
        run=False,
        save_config_callback=None,
        seed_everything_default=1,
    )
    assert type(cli.model) is Scaled
    cli.trainer.fit(cli.model, support.loader(), support.loader())
    steps = cli.model.run.log.epoch_means
    assert steps.keys() == {"loss", "kd"}
    path = tmp_path / "scaled.ckpt"
    cli.trainer.save_checkpoint(path)
    loaded = Scaled.load_from_checkpoint(path)
    support.assert_same_weights(loaded, cli.model)
    assert isinstance(loaded.teacher, support.ConvNet)
    assert loaded.scale == 3.0
