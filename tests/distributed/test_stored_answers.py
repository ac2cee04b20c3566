"""Two processes read one store, and train the student that the teacher itself would."""

import pytest
import torch

from lightning_kd import cache
from tests import support
from tests.support import processes


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["ddp", "fsdp2"])
def test_two_processes_read_stored_answers_as_they_ask_the_teacher(mode, tmp_path):
    store = cache.write(
        support.teacher(), support.data(23), tmp_path / "store", losses=support.default_losses(), dtype="float32"
    )
    processes.program("programs.cached_fit", mode, store, tmp_path, limit=300)
    for rank in range(2):
        live, stored = (torch.load(tmp_path / f"{kind}.{rank}", weights_only=True) for kind in ("live", "stored"))
        assert live.keys() == stored.keys()
        for name, value in live.items():
            torch.testing.assert_close(stored[name], value, rtol=0, atol=2e-6)
