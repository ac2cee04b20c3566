"""Students of attention that two processes train, by DDP or split by FSDP2, are those of one process."""

from functools import partial

import pytest
import torch

from tests import support
from tests.programs.attention_fit import MODELS
from tests.support import processes


@pytest.mark.slow
def test_two_processes_train_the_student_of_one(tmp_path):
    for mode in ("one", "ddp", "fsdp2"):
        (tmp_path / mode).mkdir()
        processes.program("programs.attention_fit", mode, tmp_path / mode, limit=300)
    for name, (make, _) in MODELS.items():
        one = torch.load(tmp_path / "one" / f"{name}.0", weights_only=True)
        begun = support.seeded(partial(make, 16, 2), 16).state_dict()
        moved = max((one[key] - value).abs().max() for key, value in begun.items())
        assert moved > 1e-3
        for mode in ("ddp", "fsdp2"):
            found = torch.load(tmp_path / mode / f"{name}.0", weights_only=True)
            for key, value in one.items():
                torch.testing.assert_close(found[key], value, rtol=0, atol=1e-6, msg=f"{name} {mode} {key}")
