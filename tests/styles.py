"""LightningModules in the ways in which people publish them, each once more with distillation written in by hand."""

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import nn

from lightning_kd.functional import kd_loss
from tests import support

BY_NAME: dict[str, tuple[type, type, dict]] = {}
"""Style, the same by hand, and what the callback must be told."""


class ByHand:
    """What is written into a module to distil without a callback."""

    def __init__(self):
        super().__init__()
        self.guide = [support.teacher().eval().requires_grad_(False)]  # in a list, so that it is no submodule

    def kd(self, logits, *inputs):
        with torch.no_grad():
            shown = self.guide[0](*inputs)
        return 0.9 * kd_loss(logits, shown, temperature=2.0)


def style(name, **options):
    """Enter a style's twin by hand under a name."""

    def enter(by_hand):
        BY_NAME[name] = by_hand.__mro__[2], by_hand, options
        return by_hand

    return enter


class BuiltInConfigureModel(LightningModule):
    """For large networks: made where the strategy can shard or place them, and only once."""

    def __init__(self):
        super().__init__()
        self.net = None

    def configure_model(self):
        if self.net is None:
            self.net = support.student()

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self.net(x), y)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


@style("built in configure_model")
class BuiltInConfigureModelByHand(ByHand, BuiltInConfigureModel):
    def training_step(self, batch, batch_idx):
        x, y = batch
        logits = self.net(x)
        return F.cross_entropy(logits, y) + self.kd(logits, x)


class BuiltInSetup(LightningModule):
    """For networks whose sizes the data module tells, with what else the step needs."""

    def setup(self, stage):
        self.net = support.student()
        self.criterion = nn.CrossEntropyLoss(label_smoothing=0.1)

    def training_step(self, batch, batch_idx):
        x, y = batch
        return {"loss": self.criterion(self.net(x), y), "size": len(x)}

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.01)


@style("built in setup")
class BuiltInSetupByHand(ByHand, BuiltInSetup):
    def training_step(self, batch, batch_idx):
        x, y = batch
        logits = self.net(x)
        return {"loss": self.criterion(logits, y) + self.kd(logits, x)}
