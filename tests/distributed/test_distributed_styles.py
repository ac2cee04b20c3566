"""The callback on modules of many styles, on two processes."""

import pytest
import torch

from tests.support import processes

STYLES = [
    "Lightning's BoringModel",
    "built in configure_model",
    "momentum target",
    "two views, each",
    "backbone and head",
    "nested",
    "frozen backbone",
    "optimizer of a submodule",
]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("styles")
    processes.program("programs.distributed_styles", folder, *STYLES, limit=300)
    return {name: [torch.load(folder / f"{name}.{rank}", weights_only=True) for rank in range(2)] for name in STYLES}


@pytest.mark.slow
@pytest.mark.parametrize("name", STYLES)
def test_two_processes_train_what_they_train_by_hand(name, weights):
    first, second = weights[name]
    for key, (distilled, by_hand) in first.items():
        assert torch.equal(distilled, by_hand), key
        own = key.endswith(("running_mean", "running_var", "seen"))  # each process has statistics of its own
        assert own or torch.equal(distilled, second[key][0]), key


@pytest.mark.slow
def test_a_process_without_a_loss_ends_the_run_with_the_trainers_error(tmp_path):
    done = processes.program("programs.distributed_styles", tmp_path, "no loss on one process", limit=300, check=False)
    assert done.returncode != 0
    assert "returning None in distributed training is not supported" in done.stderr
