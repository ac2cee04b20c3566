"""Networks that are float64 by ``double()`` train as with ``Trainer(precision="64-true")``, with every loss."""

import pytest
import torch
from torch.utils.data import DataLoader

from lightning_kd.data import Indexed
from tests import support


def trained(name, *, by_hand):
    learner, guide = (support.seeded(lambda width=width: support.StagedNet(width), width) for width in (3, 5))
    torch.manual_seed(5)
    made = support.module(learner, teacher=guide, losses=[support.default_loss(name)])
    x, y = support.data(16).tensors
    if by_hand:
        learner.double()
        guide.double()
        x = x.double()
    rows = DataLoader(Indexed(torch.utils.data.TensorDataset(x, y)), batch_size=8)
    options = {} if by_hand else {"precision": "64-true"}
    trainer = support.fit(made, train=rows, max_steps=2, max_epochs=-1, limit_val_batches=0, **options)
    return learner, trainer.callback_metrics


# MGD draws its masks in the default format, which the Trainer changes to float64, and so draws others
@pytest.mark.parametrize("name", [name for name in support.exported_losses() if name != "MGDLoss"])
def test_a_network_made_double_by_hand_is_that_of_a_trainer_in_float64(name):
    (mine, logged), (its, expected) = (trained(name, by_hand=way) for way in (True, False))
    assert all(weight.dtype == torch.float64 for weight in mine.parameters())
    support.assert_same_weights(mine, its)
    assert float(logged["train/loss"]) == pytest.approx(float(expected["train/loss"]), rel=1e-6)
