"""Layers inside the windows of Swin and MaxViT, and detectors that draw the size of their images."""

from functools import partial

import pytest
import timm
import torch
import torchvision
from torch import nn
from torch.nn.functional import mse_loss, normalize
from torch.utils.data import DataLoader, TensorDataset
from torchvision.models.detection import RetinaNet

from lightning_kd import DistillationModule
from lightning_kd.losses import ATLoss, HintLoss
from tests import support

CLASSES = support.CLASSES
IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
ATTENTION = "blocks.0.layers.0.layers.window_attention.attn_layer"


def swin():
    sizes = {"img_size": 64, "window_size": 4, "embed_dim": 8, "depths": (2, 2), "num_heads": (2, 2)}
    return timm.models.SwinTransformer(**sizes, num_classes=CLASSES, drop_path_rate=0.0)


def maxvit():
    sizes = {"partition_size": 4, "stem_channels": 8, "block_channels": [8], "block_layers": [1], "head_dim": 4}
    return torchvision.models.MaxVit((64, 64), **sizes, stochastic_depth_prob=0.0, num_classes=CLASSES)


class Convolutions(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(3, 8, 4, stride=4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, CLASSES))


def fit(student, teacher, loss):
    data = DataLoader(TensorDataset(IMAGES, torch.tensor([0, 1])), batch_size=2)
    still = partial(torch.optim.SGD, lr=0.0)
    module = DistillationModule(
        student.train(), teacher.eval(), [loss], task_loss=nn.CrossEntropyLoss(), optimizer=still
    )
    return support.fit(module, train=data, val=data, max_epochs=1, limit_val_batches=0).callback_metrics


def attention_map(net, layer):
    found = []
    hook = net.get_submodule(layer).register_forward_hook(lambda *call: found.append(call[2].detach()))
    net(IMAGES)
    hook.remove()
    return normalize(found[0].pow(2).mean(-1).reshape(2, -1), dim=1)


def test_the_windows_of_maxvit_are_no_map():
    words = rf"student layer '{ATTENTION}' of shape \(2, 16, 16, 8\): the positions are in another order"
    with pytest.raises(ValueError, match=words):
        fit(maxvit(), Convolutions(), ATLoss(ATTENTION, "0"))
    fit(maxvit(), Convolutions(), ATLoss(ATTENTION.rpartition(".")[0], "0"))


def test_the_shifted_windows_of_swin_are_not_compared_with_those_that_are_not():
    layer = "layers.0.blocks.{}.attn".format
    with pytest.raises(ValueError, match=rf"'{layer(1)}' of shape \(32, 16, 8\): the positions are in another order"):
        fit(swin(), swin(), ATLoss(layer(0), layer(1)))
    for block in (0, 1):
        student, teacher = support.seeded(swin, 1), support.seeded(swin, 2)
        mine, yours = (attention_map(net, layer(block)) for net in (student.train(), teacher.eval()))
        value = fit(student, teacher, ATLoss(layer(block), layer(block)))["train/at"]
        torch.testing.assert_close(value, mse_loss(mine, yours))


class Detector(nn.Module):
    """The logits are only there to have a task: the maps of the detector are compared."""

    def __init__(self, sizes):
        super().__init__()
        backbone = nn.Conv2d(3, 4, 8, stride=8)
        backbone.out_channels = 4
        anchors = torchvision.models.detection.anchor_utils.AnchorGenerator(((32,),), ((1.0,),))
        self.net = RetinaNet(backbone, 2, min_size=sizes, max_size=128, anchor_generator=anchors)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, images):
        batch, _ = self.net.transform(list(images))
        return self.head(self.net.backbone(batch.tensors).mean((2, 3)))


def test_a_detector_that_draws_the_size_of_its_images_is_refused():
    layer = "net.backbone"
    with pytest.raises(ValueError, match=r"the student draws one of the sizes min_size=\(64, 96\)"):
        fit(Detector((64, 96)), Detector((64, 96)), HintLoss(layer, layer))
    fit(Detector(64), Detector(64), HintLoss(layer, layer))
