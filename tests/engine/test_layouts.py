"""What the axes of a layer mean: found, said by the user, or asked for."""

import pytest
import torch
from torch import nn

from lightning_kd import DistillationCallback, DistillationModule
from lightning_kd.capture.axes import patch_grid
from lightning_kd.capture.layout import View
from lightning_kd.losses import ATLoss, HintLoss, RKDLoss
from tests import support


class Opaque(nn.Module):
    """Holds no module that tells what its axes mean."""

    def __init__(self, order):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(5, 1))
        self.order = order

    def forward(self, x):
        return torch.einsum(f"bchw,kc->b{self.order}", x, self.weight)


class Net(nn.Module):
    def __init__(self, order="khw"):
        super().__init__()
        self.body, self.head = Opaque(order), nn.Linear(80, support.CLASSES)

    def forward(self, x):
        return self.head(self.body(x).flatten(1))


def fit(loss, door="module", net=None):
    guide = Net()
    if door == "module":
        made, callbacks = support.module(net or Net(), teacher=guide, losses=[loss]), []
    else:
        made, callbacks = support.UserModule(net or Net()), [DistillationCallback(guide, [loss], student="net")]
    return support.fit(made, callbacks=callbacks, max_epochs=1)


@pytest.mark.parametrize("door", ["module", "callback"])
def test_a_layer_that_tells_nothing_is_asked_for(door):
    words = r"HintLoss, student layer 'body' of shape \(2, 5, 4, 4\).*HintLoss\(\.\.\., layout='NCHW'\)"
    with pytest.raises(ValueError, match=words):
        fit(HintLoss("body", "body"), door)
    fit(HintLoss("body", "body", layout="NCHW"), door)


def test_a_layout_may_be_said_of_one_layer():
    class Named(Net):
        def __init__(self):
            super().__init__("hwk")
            self.inner = self.body

    loss = HintLoss("inner", "body", layout={"inner": "NHWC", "body": "NCHW"})
    fit(loss, net=Named())
    assert loss.projectors[0].conv.in_channels == 5


def test_a_loss_of_whole_samples_needs_no_layout():
    fit(RKDLoss("body", "body"))


@pytest.mark.parametrize(("layout", "words"), [("NCL", r"'NCL' names 3 axes, but there are 4"), ("BHWC", "got 'BHWC'")])
def test_a_layout_that_cannot_be_is_refused(layout, words):
    with pytest.raises(ValueError, match=words):
        fit(ATLoss("body", "body", layout=layout))


def test_a_checkpoint_holds_how_layers_are_read(tmp_path):
    module = support.module(Net("hwk"), teacher=Net("hwk"), losses=[HintLoss("body", "body", layout="NHWC")])
    trainer = support.fit(module, max_epochs=1)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    again = DistillationModule.load_from_checkpoint(
        tmp_path / "a.ckpt", student=Net("hwk"), teacher=Net("hwk"), task_loss=nn.CrossEntropyLoss()
    )
    (loss,) = again.run.objective.components
    assert loss.views["student"]["body"] == View("NHWC")
    assert loss.layout == "NHWC"


@pytest.mark.parametrize(
    ("tokens", "size", "expected"),
    [
        (197, (224, 224), (1, (14, 14))),
        (196, (224, 224), (0, (14, 14))),
        (198, (224, 224), (2, (14, 14))),
        (261, (224, 224), (5, (16, 16))),  # DINOv2 with four registers: patches of 14 pixels
        (9, (32, 16), (1, (4, 2))),
        (7, (32, 32), (3, (2, 2))),
    ],
)
def test_the_grid_of_patches_follows_from_the_image(tokens, size, expected):
    assert patch_grid(tokens, torch.zeros(1, 3, *size)) == expected
