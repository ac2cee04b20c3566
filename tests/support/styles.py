"""LightningModules in the ways in which people publish them, each once more with distillation written in by hand."""

import copy
import dataclasses
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from lightning.pytorch.demos.boring_classes import BoringModel, RandomDataset
from lightning.pytorch.demos.lstm import LightningLSTM, SimpleLSTM
from lightning.pytorch.demos.transformer import LightningTransformer, Transformer
from torch import nn
from torchmetrics import Accuracy

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


# What a batch is


@dataclasses.dataclass
class Pictures:
    pixels: torch.Tensor
    labels: torch.Tensor


class NamedBatches(LightningModule):
    """Gets batches of its own form from a hook, and gives the network its inputs by name."""

    def __init__(self):
        super().__init__()
        self.net = support.student()
        self.accuracy = Accuracy("multiclass", num_classes=support.CLASSES)

    def on_after_batch_transfer(self, batch, dataloader_idx):
        return Pictures(*batch)

    def training_step(self, batch, *args, **kwargs):
        logits = self.net(x=batch.pixels)
        self.accuracy(logits, batch.labels)
        self.log_dict({"accuracy": self.accuracy}, on_step=False, on_epoch=True)
        return F.cross_entropy(logits, batch.labels) + self.extra(logits, batch.pixels)

    def extra(self, logits, pixels):
        return 0.0

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", F.cross_entropy(self.net(x=batch.pixels), batch.labels))

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.net.parameters(), lr=0.1)
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, threshold=10.0)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "val_loss"}}


@style("batches of its own form")
class NamedBatchesByHand(ByHand, NamedBatches):
    def extra(self, logits, pixels):
        return self.kd(logits, pixels)


# What a module changes of Lightning itself


class Overriding(LightningModule):
    """Takes over what the Trainer does around a step, and what a checkpoint holds."""

    def __init__(self):
        super().__init__()
        self.net = support.student()
        self.rates = []

    def on_train_batch_start(self, batch, batch_idx):
        return -1 if self.current_epoch == 0 and batch_idx == 2 else None

    def training_step(self, batch, batch_idx):
        x, y = batch
        if batch_idx == 1:
            return None
        logits = self.net(x)
        return F.cross_entropy(logits, y) + self.extra(logits, x)

    def extra(self, logits, x):
        return 0.0

    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):
        self.clip_gradients(optimizer, gradient_clip_val=0.1, gradient_clip_algorithm="norm")

    def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure=None):
        if self.global_step < 2:
            for group in optimizer.param_groups:
                group["lr"] = 0.05 * (self.global_step + 1)
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)

    def lr_scheduler_step(self, scheduler, metric):
        scheduler.step()
        self.rates.append(scheduler.get_last_lr()[0])

    def configure_optimizers(self):
        optimizer = torch.optim.SGD([p for p in self.net.parameters() if p.requires_grad], lr=0.1, momentum=0.9)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)]

    def state_dict(self):
        return {name.removeprefix("net."): value for name, value in super().state_dict().items()}

    def load_state_dict(self, state, strict=True):
        return self.net.load_state_dict(state, strict)

    def on_save_checkpoint(self, checkpoint):
        checkpoint["rates"] = list(self.rates)

    def on_load_checkpoint(self, checkpoint):
        self.rates = checkpoint["rates"]


@style("overrides")
class OverridingByHand(ByHand, Overriding):
    def extra(self, logits, x):
        return self.kd(logits, x)


class Compiled(LightningModule):
    """Compiles its network."""

    def __init__(self):
        super().__init__()
        self.net = torch.compile(support.student(), backend="aot_eager")

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self.net(x), y)

    def configure_optimizers(self):
        return torch.optim.SGD(self.net.parameters(), lr=0.1)


@style("compiled network")
class CompiledByHand(ByHand, Compiled):
    def training_step(self, batch, batch_idx):
        x, y = batch
        logits = self.net(x)
        return F.cross_entropy(logits, y) + self.kd(logits, x)


class FrozenBackbone(BackboneAndHead):
    """Trains the head alone, and keeps the backbone in eval mode."""

    def __init__(self):
        super().__init__()
        self.backbone.requires_grad_(False)

    def on_train_epoch_start(self):
        self.backbone.eval()

    def forward(self, x):
        with torch.no_grad():
            features = self.backbone(x)
        return self.head(features.flatten(1))

    def configure_optimizers(self):
        return torch.optim.SGD(filter(lambda p: p.requires_grad, self.parameters()), lr=0.1)


@style("frozen backbone", student="")
class FrozenBackboneByHand(ByHand, FrozenBackbone):
    def loss(self, logits, x, y):
        task = super().loss(logits, x, y)
        return task + self.kd(logits, x) if self.trainer.training else task
