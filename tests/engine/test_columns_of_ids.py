"""Class ids with one axis too many, (B, 1), as medical data sets and data frames hold them, train like ids (B,)."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MulticlassAccuracy

from lightning_kd import DistillationModule
from lightning_kd.data import Indexed
from lightning_kd.functional import dkd_loss, nkd_loss, tfkd_loss, wsld_loss
from lightning_kd.losses import BYOTLoss, CRDLoss, DKDLoss, KDLoss, MutualLearning, NKDLoss, TfKDLoss, WSLDLoss
from lightning_kd.losses.logits.temperature import AdaptiveTemperature
from tests import support

LOSSES = {
    "kd": lambda: KDLoss(),
    "kd by correctness": lambda: KDLoss(AdaptiveTemperature(by="correctness")),
    "dkd": lambda: DKDLoss(),
    "nkd": lambda: NKDLoss(),
    "wsld": lambda: WSLDLoss(),
    "tf_kd": lambda: TfKDLoss(),
    "mutual_learning": lambda: MutualLearning([support.seeded(support.student, 8)]),
    "byot": lambda: BYOTLoss(),
    "crd": lambda: CRDLoss("features", "features", dim=4, negatives=8),
}


def fit(name, y):
    data = TensorDataset(support.data().tensors[0], y)
    loader = DataLoader(Indexed(data) if name == "crd" else data, 8)
    student = support.seeded(lambda: support.StagedNet(4), 5) if name == "byot" else support.student()
    module = DistillationModule(
        student,
        support.teacher(),
        [LOSSES[name]()],
        task_loss=nn.CrossEntropyLoss(),
        metrics={"mine": MulticlassAccuracy(4)},
    )
    torch.manual_seed(2)
    trainer = support.trainer(max_epochs=1)
    trainer.fit(module, loader, loader)
    return module, {name: value.item() for name, value in trainer.callback_metrics.items()}


@pytest.mark.parametrize("name", LOSSES)
def test_a_column_of_ids_trains_and_measures_like_a_row(name):
    dtype = torch.uint8 if name in ("kd", "dkd", "crd") else torch.int64
    y = support.data().tensors[1]
    expected, metrics = fit(name, y)
    module, found = fit(name, y[:, None].to(dtype))
    assert found == metrics
    assert {"val/mine", "val/accuracy", "val/loss"} <= set(found)
    support.assert_same_weights(module.student, expected.student)


LOSSES_OF_PIXELS = {"dkd": dkd_loss, "nkd": nkd_loss, "wsld": wsld_loss, "tfkd": lambda s, _, y: tfkd_loss(s, y)}


@pytest.mark.parametrize("loss", LOSSES_OF_PIXELS.values(), ids=LOSSES_OF_PIXELS)
def test_pixels_with_a_channel_of_ids_too(loss):
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 2, 5, 3, 4, generator=generator)
    y = torch.randint(0, 5, (2, 3, 4), generator=generator)
    assert torch.equal(loss(student, teacher, y[:, None]), loss(student, teacher, y))
    with pytest.raises(ValueError, match="expected class ids"):
        loss(student, teacher, y[..., None])
    with pytest.raises(ValueError, match="expected class ids"):
        loss(student, teacher, y[:, None].float())
