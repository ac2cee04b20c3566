"""The matrix on a GPU; where there is none, these tests are left out."""

from functools import partial
from importlib.util import find_spec

import pytest
import torch

from lightning_kd.data import Indexed
from tests import support
from tests.matrix.cells import FAMILIES
from tests.support import processes

WAYS = {
    "16-mixed": {"precision": "16-mixed", "gradient_clip_val": 0.1},
    "FSDPStrategy": {"strategy": "fsdp", "gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"},
}
if find_spec("deepspeed") is not None:
    WAYS["DeepSpeed"] = {"strategy": "deepspeed_stage_2", "gradient_clip_val": 0.1}


@pytest.mark.gpu
@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("way", WAYS)
def test_every_strategy_trains_on_a_gpu(way, accumulate):
    """In a process of its own, which has the process group of one way."""
    processes.spawned(check_all, "cuda", way, accumulate, ranks=1, limit=200)


def check_all(_, accelerator, way, accumulate):
    failed = {}
    for loss in FAMILIES:
        try:
            check(accelerator, loss, accumulate, **WAYS[way])
        except Exception as error:  # of any kind: one loss that fails must not hide what becomes of the others
            failed[loss] = repr(error)
    assert not failed, failed


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


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:GPU available but not used:UserWarning")
@pytest.mark.parametrize("loss", [loss for loss in FAMILIES if loss != "CRDLoss"])  # a GPU draws other negatives
def test_a_gpu_trains_as_the_cpu_does(loss, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    check_same("cuda", loss)


def check_same(accelerator, loss):
    weights = []
    for device in ("cpu", accelerator):
        made = module(loss)
        support.fit(made, train=rows(), accelerator=device, devices=1, max_epochs=2, limit_val_batches=0)
        weights.append({name: value.cpu() for name, value in made.state_dict().items() if name.startswith("student")})
    for name, there in weights[0].items():
        torch.testing.assert_close(
            weights[1][name], there, rtol=1e-3, atol=1e-4, msg=lambda text, at=name: f"{at}: {text}"
        )


@pytest.mark.gpu
@pytest.mark.parametrize("door", ["module", "callback"])
@pytest.mark.parametrize("loss", FAMILIES)
def test_a_run_on_a_gpu_resumes_bit_for_bit(loss, door, tmp_path):
    check_resumed("cuda", loss, door, tmp_path)


def check_resumed(accelerator, loss, door, folder):
    options = {"accelerator": accelerator, "devices": 1, "limit_val_batches": 0}
    ended = []
    for resumed in (None, folder / "3.ckpt"):
        net = support.seeded(lambda: support.StagedNet(3, norm=False), 3)
        guide = support.seeded(lambda: support.StagedNet(8, norm=False), 7)
        made, callbacks = support.through(door, net, guide=guide, losses=[support.default_loss(loss)])
        if resumed is None:
            callbacks = [*callbacks, support.SaveEveryStep(folder)]
        support.fit(made, train=rows(), ckpt_path=resumed, callbacks=callbacks, max_epochs=2, **options)
        ended.append(net.cpu())
    support.assert_same_weights(*ended)


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:TensorFloat32 tensor cores:UserWarning")
def test_a_compiled_student_trains_and_leaves_a_gpu(tmp_path):
    made = module("KDLoss")
    made.student = torch.compile(made.student)
    support.fit(made, train=rows(), accelerator="gpu", devices=1, max_epochs=1, limit_val_batches=0)
    made.export(tmp_path / "student.safetensors")
    assert (tmp_path / "student.safetensors").is_file()


def module(loss):
    net = support.seeded(lambda: support.StagedNet(3, norm=False), 3)
    guide = support.seeded(lambda: support.StagedNet(8, norm=False), 7)
    slow = partial(torch.optim.SGD, lr=0.01)  # RKD diverges at the rate of the other tests
    return support.module(net, teacher=guide, losses=[support.default_loss(loss)], optimizer=slow)


def rows():
    return torch.utils.data.DataLoader(Indexed(support.data(48)), batch_size=8)


@pytest.mark.parametrize("loss", ["KDLoss", "CRDLoss"])
def test_the_other_checks_run_without_a_gpu(loss, tmp_path):
    check_same("cpu", loss)
    check_resumed("cpu", loss, "callback", tmp_path)


@pytest.mark.parametrize("loss", FAMILIES)
def test_the_check_itself_runs_without_a_gpu(loss):
    check("cpu", loss, 3, precision="bf16-mixed", gradient_clip_val=0.1)
