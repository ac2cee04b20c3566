"""The columns of the matrix that need a GPU; where there is none, these tests are left out."""

from importlib.util import find_spec

import pytest
import torch

from lightning_kd.data import Indexed
from tests import support
from tests.matrix.cells import FAMILIES

WAYS = {
    "16-mixed": {"precision": "16-mixed", "gradient_clip_val": 0.1},
    "FSDPStrategy": {"strategy": "fsdp", "gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"},
}
if find_spec("deepspeed") is not None:
    WAYS["DeepSpeed"] = {"strategy": "deepspeed_stage_2", "gradient_clip_val": 0.1}


@pytest.mark.gpu
@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("loss", FAMILIES)
@pytest.mark.parametrize("way", WAYS)
def test_every_strategy_trains_on_a_gpu(way, loss, accumulate):
    check("cuda", loss, accumulate, **WAYS[way])


def check(accelerator, loss, accumulate, **options):
    guide = support.StagedNet(8, norm=False)
    before = support.snapshot(guide)
    made = support.module(support.StagedNet(3, norm=False), teacher=guide, losses=[support.default_loss(loss)])
    trainer = support.fit(
        made,
        train=torch.utils.data.DataLoader(Indexed(support.data(48)), batch_size=8),
        accelerator=accelerator,
        devices=1,
        max_epochs=-1,
        max_steps=2,
        accumulate_grad_batches=accumulate,
        limit_val_batches=0,
        **options,
    )
    assert trainer.global_step == 2
    assert trainer.callback_metrics["train/loss"].isfinite()
    support.assert_unchanged(guide.cpu(), before)


@pytest.mark.parametrize("loss", FAMILIES)
def test_the_check_itself_runs_without_a_gpu(loss):
    check("cpu", loss, 3, precision="bf16-mixed", gradient_clip_val=0.1)
