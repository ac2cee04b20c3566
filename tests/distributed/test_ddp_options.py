"""DDP's options change nothing, in losses whose stages leave parameters out too; started and forked processes alike."""

import os
import sys
from functools import partial

import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy

from tests import support
from tests.support import processes

LOSSES = ["HintLoss", "FTLoss", "FSPLoss", "ABLoss"]
OPTIONS = {
    "static_graph": {"static_graph": True},
    "find_unused_parameters": {"find_unused_parameters": True},
    "both": {"static_graph": True, "find_unused_parameters": True},
    "gradient_as_bucket_view": {"gradient_as_bucket_view": True},
    "small buckets": {"bucket_cap_mb": 0.001},
}


def trained(loss, strategy):
    learner, guide = (support.seeded(partial(support.StagedNet, width, norm=False), width) for width in (3, 8))
    torch.manual_seed(5)
    optimizer = partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.1)
    made = support.module(learner, teacher=guide, losses=[support.default_loss(loss)], optimizer=optimizer)
    rows = support.loader(batch_size=4, count=32)
    support.fit(made, train=rows, strategy=strategy, devices=2, max_epochs=-1, max_steps=4, limit_val_batches=0)
    return learner.state_dict()


def work(rank, folder):
    os.environ.update(LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1", MASTER_PORT=(folder / "port").read_text())
    ways = {"plain": {}, **OPTIONS}
    found = {
        f"{loss} {way}": trained(loss, DDPStrategy(process_group_backend="gloo", **ways[way]))
        for loss in LOSSES
        for way in ways
    }
    torch.save(found, folder / str(rank))
    processes.leave_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("options")
    (folder / "port").write_text(support.free_port())
    processes.spawned(work, folder, limit=600)
    return [torch.load(folder / str(rank), weights_only=True) for rank in range(2)]


def fork_two(path):
    """Fit in two processes that the Trainer forks, and write what this one gets back."""
    torch.save(trained("HintLoss", DDPStrategy(process_group_backend="gloo", start_method="fork")), path)


@pytest.mark.slow
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("option", OPTIONS)
def test_an_option_of_ddp_changes_no_bit(option, loss, ranks):
    for found in ranks:
        expected = ranks[0][f"{loss} plain"]
        assert all(torch.equal(value, expected[name]) for name, value in found[f"{loss} {option}"].items())


@pytest.mark.slow
def test_forked_processes_give_the_student_back(ranks, tmp_path):
    # in a process that is no fork itself: a torch for CUDA lets no fork of a fork begin
    code = "import sys; from tests.distributed.test_ddp_options import fork_two; fork_two(sys.argv[1])"
    processes.run([[sys.executable, "-W", "ignore", "-c", code, str(tmp_path / "forked")]], limit=120)
    forked = torch.load(tmp_path / "forked", weights_only=True)
    expected = ranks[0]["HintLoss plain"]
    assert all(torch.equal(value, expected[name]) for name, value in forked.items())
