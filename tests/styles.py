"""LightningModules in the ways in which people publish them, each once more with distillation written in by hand."""

import copy
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from lightning.pytorch.demos.boring_classes import BoringModel, RandomDataset
from lightning.pytorch.demos.lstm import LightningLSTM, SimpleLSTM
from lightning.pytorch.demos.transformer import LightningTransformer, Transformer
from torch import nn

from lightning_kd.functional import kd_loss
from tests import support

WORDS = 11


class Style(NamedTuple):
    """A module, the same by hand, what they train on, and what the callback must be told."""

    alone: type[LightningModule]
    by_hand: type[LightningModule]
    data: Any
    guide: Any
    options: dict[str, Any]


BY_NAME: dict[str, Style] = {}


class ByHand:
    """What is written into a module to distil without a callback."""

    make_guide = staticmethod(support.teacher)

    def __init__(self):
        super().__init__()
        self.guide = [self.make_guide().eval().requires_grad_(False)]  # in a list, so that it is no submodule

    def kd(self, logits, *inputs):
        with torch.no_grad():
            shown = self.guide[0](*inputs)
        return 0.9 * kd_loss(logits, shown[0] if isinstance(shown, tuple) else shown, temperature=2.0)


def style(name, data=support.data, **options):
    """Enter a style's twin by hand under a name."""

    def enter(by_hand):
        BY_NAME[name] = Style(by_hand.__mro__[2], by_hand, data, by_hand.make_guide, options)
        return by_hand

    return enter


# Lightning's own demos


def vectors():
    return support.seeded(partial(RandomDataset, 32, 24), 0)


class BoringDemo(BoringModel):
    """Returns a dictionary; its optimizer is made of the layer's parameters, with a scheduler."""

    def __init__(self):
        super().__init__()
        self.layer = support.seeded(partial(nn.Linear, 32, 2), 3)


@style("Lightning's BoringModel", vectors)
class BoringDemoByHand(ByHand, BoringDemo):
    make_guide = staticmethod(lambda: support.seeded(partial(nn.Linear, 32, 2), 7))

    def training_step(self, batch, batch_idx):
        output = self(batch)
        return {"loss": self.loss(output) + self.kd(output, batch)}


def sentences():
    words = torch.randint(WORDS, (24, 6), generator=torch.Generator().manual_seed(0))
    return [(sentence[:-1], sentence[1:]) for sentence in words]


class TransformerDemo(LightningTransformer):
    """A language model with two inputs, log-probabilities of all words in a row, and dropout."""

    def __init__(self):
        super().__init__(WORDS)
        self.model = support.seeded(partial(Transformer, WORDS, 8, 2, 8, 1), 3)

    def prepare_data(self):
        """Nothing to download."""


@style("Lightning's transformer", sentences)
class TransformerDemoByHand(ByHand, TransformerDemo):
    make_guide = staticmethod(lambda: support.seeded(partial(Transformer, WORDS, 16, 2, 8, 1), 7))

    def training_step(self, batch, batch_idx):
        inputs, target = batch
        output = self(inputs, target)
        return F.nll_loss(output, target.view(-1)) + self.kd(output, inputs, target)


class LSTMDemo(LightningLSTM):
    """Carries its hidden state from one training step to the next, in an attribute."""

    def __init__(self):
        super().__init__(WORDS)
        self.model = support.seeded(partial(SimpleLSTM, WORDS, 6, 8, 2), 3)

    def prepare_data(self):
        """Nothing to download."""

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.5)


@style("Lightning's LSTM", sentences)
class LSTMDemoByHand(ByHand, LSTMDemo):
    make_guide = staticmethod(lambda: support.seeded(partial(SimpleLSTM, WORDS, 10, 8, 2), 7))

    def training_step(self, batch, batch_idx):
        inputs, target = batch
        if self.hidden is None:
            self.hidden = self.model.init_hidden(len(inputs))
        before = self.hidden[0].detach(), self.hidden[1].detach()
        output, self.hidden = self.model(inputs, before)
        return F.nll_loss(output, target.view(-1)) + self.kd(output, inputs, before)


# Where the networks are made


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


# What else a step does


class MomentumTarget(LightningModule):
    """Moves a slow copy of the network at the beginning of every step, and counts in attributes and buffers."""

    def __init__(self):
        super().__init__()
        self.net = support.student(dropout=0.5)
        self.target = copy.deepcopy(self.net).requires_grad_(False)
        self.register_buffer("seen", torch.zeros(()))
        self.sizes = []
        self.steps = 0

    def training_step(self, batch, batch_idx):
        self.move(batch)
        x, y = batch
        logits, aim = self.views(x)
        return F.cross_entropy(logits, y) + F.mse_loss(logits, aim)

    def move(self, batch):
        self.seen += len(batch[0])
        self.sizes.append(len(batch[0]))
        self.steps += 1
        with torch.no_grad():
            for slow, fast in zip(self.target.parameters(), self.net.parameters(), strict=True):
                slow.mul_(0.7).add_(fast + 0.01, alpha=0.3)

    def views(self, x):
        with torch.no_grad():
            aim = self.target(x)
        return self.net(x), aim

    def configure_optimizers(self):
        return torch.optim.Adam(self.net.parameters(), lr=0.01)


@style("momentum target", student="net")
class MomentumTargetByHand(ByHand, MomentumTarget):
    def training_step(self, batch, batch_idx):
        self.move(batch)
        x, y = batch
        logits, aim = self.views(x)
        return F.cross_entropy(logits, y) + F.mse_loss(logits, aim) + self.kd(logits, x)
