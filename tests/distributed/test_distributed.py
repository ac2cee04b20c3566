"""Two processes train what one does, each with the whole model (DDP) or with its part of every parameter (FSDP2)."""

import pytest
import torch

from tests import support
from tests.matrix.verdict import OWN_DRAWS
from tests.programs.distributed_fit import SCENARIOS
from tests.support import processes

SCENARIOS_OF = {
    "module": [*SCENARIOS, *support.exported_losses()],
    "callback": ["default", "stage without the student", "born again"],
}
BEGINS_ANEW = ["born again"]
"""What is refused under FSDP2."""


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """What every process has after every scenario, by door, mode and scenario."""
    found = {}
    for door, scenarios in SCENARIOS_OF.items():
        for mode in ("one", "ddp", "fsdp2"):
            folder = tmp_path_factory.mktemp(f"{door}-{mode}")
            names = [name for name in scenarios if mode != "fsdp2" or name not in BEGINS_ANEW]
            processes.program("programs.distributed_fit", door, mode, folder, *names, limit=600)
            for name in names:
                paths = [folder / f"{name}.{rank}" for rank in range(1 if mode == "one" else 2)]
                found[door, mode, name] = [torch.load(path, weights_only=True) for path in paths]
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("door", "scenario"), [(door, name) for door, names in SCENARIOS_OF.items() for name in names])
def test_two_processes_equal_one(door, scenario, weights):
    (one,) = weights[door, "one", scenario]
    first, second = weights[door, "ddp", scenario]
    assert one["state"].keys() == first["state"].keys()
    # each process draws its own negatives or masks, or normalises its own half: the two are equal, but not to one
    own = scenario in OWN_DRAWS or one["normalises"]
    # quotients of the norms of gradients round otherwise on some processors
    bound = 5e-6 if scenario == "balanced" else 1e-6
    for name, expected in one["state"].items():
        if not own:
            torch.testing.assert_close(first["state"][name], expected, rtol=bound, atol=bound)
        assert torch.equal(first["state"][name], second["state"][name])
    assert all(torch.equal(value, second["teacher"][name]) for name, value in first["teacher"].items())
    assert first["tracked"] == one["own"]  # the teacher is not among what DDP synchronizes


@pytest.mark.slow
@pytest.mark.parametrize(
    ("door", "scenario"),
    [(door, name) for door, names in SCENARIOS_OF.items() for name in names if name not in BEGINS_ANEW],
)
def test_split_parameters_train_like_whole_ones(door, scenario, weights):
    whole, _ = weights[door, "ddp", scenario]
    first, second = weights[door, "fsdp2", scenario]
    assert first["split"]
    assert second["split"]
    for part in ("state", "teacher"):
        assert first[part].keys() == whole[part].keys()
        for name, expected in whole[part].items():
            torch.testing.assert_close(first[part][name], expected, rtol=1e-6, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("scenario", ["CRDLoss", "balanced"])
def test_what_the_losses_keep_equal_is_not_sent(scenario, weights):
    assert [run["buffers"] for run in weights["module", "ddp", scenario]] == [0, 0]
    assert weights["module", "ddp", "mean teacher of a student that normalises"][0]["buffers"] > 0
