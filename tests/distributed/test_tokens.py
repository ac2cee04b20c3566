"""A language model that two processes train, DDP or FSDP2, is that of one: whole logits, fused, with tied weights."""

import pytest
import torch

from tests.programs.token_fit import WAYS
from tests.support import processes


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """What every process has after every way to train, by mode and way."""
    found = {}
    for mode in ("one", "ddp", "fsdp2"):
        folder = tmp_path_factory.mktemp(mode)
        processes.program("programs.token_fit", mode, folder, limit=300)
        for way in WAYS:
            ranks = range(1 if mode == "one" else 2)
            found[mode, way] = [torch.load(folder / f"{way}.{rank}", weights_only=True) for rank in ranks]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("mode", ["ddp", "fsdp2"])
def test_two_processes_with_texts_of_unequal_length_equal_one(mode, way, weights):
    (one,) = weights["one", way]
    first = weights[mode, way][0]
    assert first.keys() == one.keys()
    for name, value in one.items():
        torch.testing.assert_close(first[name], value, rtol=0, atol=2e-6)


@pytest.mark.slow
def test_fused_is_that_of_whole_logits(weights):
    for whole, fused in (("whole", "fused"), ("whole", "recompute"), ("tied whole", "tied")):
        for name, value in weights["one", whole][0].items():
            torch.testing.assert_close(weights["one", fused][0][name], value, rtol=0, atol=2e-6)


@pytest.fixture(scope="module")
def means(weights, tmp_path_factory):
    """The means of an evaluation after every way to train, by mode and way."""
    root = tmp_path_factory.getbasetemp()
    return {
        (mode, way): [
            torch.load(next(root.glob(f"{mode}*/{way}.means.{rank}")), weights_only=True)
            for rank in range(1 if mode == "one" else 2)
        ]
        for mode, way in weights
    }


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["ddp", "fsdp2"])
def test_the_means_of_an_evaluation_are_those_of_one_process(mode, means):
    for way in WAYS:
        (one,) = means["one", way]
        assert {"val/loss", "val/token_kd", "val/perplexity", "val/teacher_perplexity", "val/accuracy"} <= set(one)
        for found in means[mode, way]:
            for name, value in one.items():
                torch.testing.assert_close(found[name], value, rtol=1e-5, atol=0, msg=f"{way} {name}")
