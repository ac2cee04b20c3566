"""One fit of a segmentation network, with or without a teacher, and the mean IoU that it reaches."""

import logging
import warnings
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from lightning import Trainer, seed_everything
from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader
from torchmetrics.classification import MulticlassJaccardIndex

from examples.segmentation.shapes import CLASSES, shapes
from lightning_kd import DistillationModule
from lightning_kd.losses import DistillationLoss

BATCH, LEARNING_RATE = 16, 0.005
HELD_OUT_SEED = 1_000_000


def fit(
    net: nn.Module,
    images: int,
    steps: int,
    seed: int,
    *,
    teacher: nn.Module | None = None,
    losses: Sequence[DistillationLoss] | None = None,
    progress: bool = False,
) -> nn.Module:
    """Train a network on a number of images, and return it.

    Args:
        net: The network; its output is ``{"out": logits}``.
        images: How many labelled images there are, the same ones for each seed.
        steps: How many steps of 16 images to take.
        seed: Says in which order the images come.
        teacher: The teacher, if there is one.
        losses: What is distilled, beside the cross entropy with the labels.
        progress: Show a progress bar.
    """
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    seed_everything(seed, verbose=False)
    module = DistillationModule(
        net,
        teacher,
        losses,
        task_loss=nn.CrossEntropyLoss(),
        optimizer=partial(AdamW, lr=LEARNING_RATE, weight_decay=0.01),
        lr_scheduler=partial(OneCycleLR, max_lr=LEARNING_RATE, total_steps=steps),
        lr_interval="step",
        logits="out",
    )
    quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    trainer = Trainer(
        max_epochs=-1, max_steps=steps, accelerator="cpu", limit_val_batches=0, enable_progress_bar=progress, **quiet
    )
    trainer.fit(module, DataLoader(shapes(images, seed=0), batch_size=BATCH, shuffle=True, drop_last=True))
    return net


@torch.no_grad()
def mean_iou(net: nn.Module, images: int) -> float:
    """Return the mean over the classes of intersection over union, in percent, on images that nobody trained on."""
    torch.set_num_threads(1)
    metric = MulticlassJaccardIndex(len(CLASSES))
    for x, y in DataLoader(shapes(images, seed=HELD_OUT_SEED), batch_size=100):
        metric.update(net.eval()(x)["out"].argmax(dim=1), y)
    return 100 * float(metric.compute())
