"""Students of plain torch whose attention is read learn in two processes what they learn in one."""

import re
from functools import partial

import pytest
import torch

from tests import support
from tests.programs.called_attention_fit import MODELS
from tests.support import processes

SPLIT = r"layer fsdp2: The student's 'net.blocks.1' cannot be read: the weights of its nn.MultiheadAttention are split"


@pytest.mark.slow
def test_two_processes_train_the_student_of_one(tmp_path):
    told = {}
    for mode in ("one", "ddp", "fsdp2"):
        (tmp_path / mode).mkdir()
        told[mode] = processes.program("programs.called_attention_fit", mode, tmp_path / mode, limit=300).stdout
    for name, (make, _) in MODELS.items():
        one = torch.load(tmp_path / "one" / f"{name}.0", weights_only=True)
        begun = support.seeded(partial(make, 16, 2), 16).state_dict()
        assert max((one[key] - value).abs().max() for key, value in begun.items()) > 1e-3
        for mode in ("ddp", "fsdp2") if name == "called" else ("ddp",):
            found = torch.load(tmp_path / mode / f"{name}.0", weights_only=True)
            for key, value in one.items():
                torch.testing.assert_close(found[key], value, rtol=0, atol=1e-6, msg=f"{name} {mode} {key}")
    assert re.search(SPLIT, told["fsdp2"])
    assert not re.search("layer (one|ddp):", told["one"] + told["ddp"])
