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


class PseudoLabels(LightningModule):
    """Asks its network for labels before it trains it on them: a call without gradients comes first."""

    def __init__(self):
        super().__init__()
        self.net = support.student(dropout=0.5)

    def training_step(self, batch, batch_idx):
        x, labels = self.pseudo_labelled(batch)
        return F.cross_entropy(self.net(x), labels)

    def pseudo_labelled(self, batch):
        x, y = batch
        with torch.no_grad():
            probability = self.net(x.flip(-1)).softmax(1)
        return x, torch.where(probability.amax(1) > 0.4, probability.argmax(1), y)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@style("pseudo-labels")
class PseudoLabelsByHand(ByHand, PseudoLabels):
    def training_step(self, batch, batch_idx):
        x, labels = self.pseudo_labelled(batch)
        logits = self.net(x)
        return F.cross_entropy(logits, labels) + self.kd(logits, x)


class TwoViews(LightningModule):
    """Calls one network on two views of a batch, as contrastive and siamese networks do."""

    def __init__(self):
        super().__init__()
        self.net = support.student()

    def training_step(self, batch, batch_idx):
        x, y = batch
        one, other = self.net(x), self.net(x.flip(-1))
        return F.cross_entropy(one, y) + F.mse_loss(one, other)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@style("two views, each", student_calls="each")
class BothViewsByHand(ByHand, TwoViews):
    def training_step(self, batch, batch_idx):
        x, y = batch
        one, other = self.net(x), self.net(x.flip(-1))
        task = F.cross_entropy(one, y) + F.mse_loss(one, other)
        shown, turned = self.guide[0](x), self.guide[0](x.flip(-1))
        mean = (kd_loss(one, shown, temperature=2.0) + kd_loss(other, turned, temperature=2.0)) / 2
        return task + 0.9 * mean


@style("two views, first", student_calls="first")
class FirstViewByHand(ByHand, TwoViews):
    def training_step(self, batch, batch_idx):
        x, y = batch
        one, other = self.net(x), self.net(x.flip(-1))
        return F.cross_entropy(one, y) + F.mse_loss(one, other) + self.kd(one, x)


@style("two views, last", student_calls="last")
class LastViewByHand(ByHand, TwoViews):
    def training_step(self, batch, batch_idx):
        x, y = batch
        one, other = self.net(x), self.net(x.flip(-1))
        return F.cross_entropy(one, y) + F.mse_loss(one, other) + self.kd(other, x.flip(-1))


# Where the network is in the module


class BackboneAndHead(LightningModule):
    """Has no one child that is the network: the module itself is, and calls itself."""

    def __init__(self):
        super().__init__()
        net = support.student()
        self.backbone, self.head = net.features, net.head
        self.save_hyperparameters()

    def forward(self, x):
        return self.head(self.backbone(x).flatten(1))

    def training_step(self, batch, batch_idx):
        return self.shared_step(batch, "train")

    def validation_step(self, batch, batch_idx):
        self.shared_step(batch, "val")

    def shared_step(self, batch, stage):
        x, y = batch
        loss = self.loss(self(x), x, y)
        self.log(f"{stage}_loss", loss)
        return loss

    def loss(self, logits, x, y):
        return F.cross_entropy(logits, y)

    def configure_optimizers(self):
        slow, fast = ({"params": part.parameters(), "lr": lr} for part, lr in ((self.backbone, 0.01), (self.head, 0.1)))
        optimizer = torch.optim.SGD([slow, fast], momentum=0.9)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=[0.01, 0.1], total_steps=12)
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]


@style("backbone and head", student="")
class BackboneAndHeadByHand(ByHand, BackboneAndHead):
    def loss(self, logits, x, y):
        task = super().loss(logits, x, y)
        return task + self.kd(logits, x) if self.trainer.training else task


class Inner(LightningModule):
    def __init__(self):
        super().__init__()
        self.nets = nn.ModuleDict({"first": nn.Identity(), "student": support.student()})

    def forward(self, x):
        return self.nets["student"](self.nets["first"](x))


class Nested(LightningModule):
    """A LightningModule around another, whose network is two levels down."""

    def __init__(self):
        super().__init__()
        self.inner = Inner()

    def training_step(self, batch):
        x, y = batch
        logits = self.inner(x)
        return {"loss": F.cross_entropy(logits, y), "logits": logits.detach()}

    def configure_optimizers(self):
        optimizer = torch.optim.RMSprop(self.inner.nets.parameters(), lr=0.01)
        return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 2)}


@style("nested", student="inner.nets.student")
class NestedByHand(ByHand, Nested):
    def training_step(self, batch):
        x, y = batch
        logits = self.inner(x)
        return {"loss": F.cross_entropy(logits, y) + self.kd(logits, x)}
