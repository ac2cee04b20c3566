"""A task whose right answer is known: the class is the place of the largest of ten inputs."""

import warnings

import pytest
import torch
from lightning.pytorch import Trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_kd import DistillationModule, Doctor
from lightning_kd.losses import KDLoss

CLASSES = 10


def data(rows=512, batch_size=64):
    x = torch.rand(rows, CLASSES, generator=torch.Generator().manual_seed(0))
    return DataLoader(TensorDataset(x, x.argmax(1)), batch_size)


class Answers(nn.Module):
    """A teacher that knows the right answer, and then says another thing."""

    def __init__(self, change=lambda logits: logits):
        super().__init__()
        self.change = change
        self.factor = nn.Parameter(torch.tensor(20.0))

    def forward(self, x):
        return self.change(self.factor * x)


def student(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(CLASSES, 16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, CLASSES))


def fitted(teacher, loader=None, callbacks=(), epochs=1, losses=None, **options):
    module = DistillationModule(
        student(),
        teacher,
        losses or [KDLoss()],
        **{"task_loss": nn.CrossEntropyLoss(), "task_weight": 0.1, **options},
    )
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "limit_val_batches": 0}
    trainer = Trainer(
        max_epochs=epochs, accelerator="cpu", enable_model_summary=False, callbacks=list(callbacks), **quiet
    )
    trainer.fit(module, data() if loader is None else loader, data())
    return module


@pytest.fixture
def warned():
    """Fit with a doctor, and return what it warned of."""

    def run(teacher, *args, batches=8, **options):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            fitted(teacher, *args, callbacks=[Doctor(batches)], **options)
        return [str(one.message) for one in caught if "lightning-kd check" in str(one.message)]

    return run
