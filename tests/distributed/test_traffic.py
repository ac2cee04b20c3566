"""What two processes send in a step: the gradients of student and losses, once, and nothing of the teacher."""

import pytest
import torch

from tests.programs.traffic import SCENARIOS
from tests.support import processes

ROWS, NUMBER, INDEX, LENGTH = 4, 4, 8, 8
"""Samples of a process, and the bytes of a float32, of a row's index and of what tells how many samples there are."""
EMBEDDING = 6


@pytest.fixture(scope="module")
def sent(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sent")
    processes.program("programs.traffic", folder, *SCENARIOS, limit=600)
    return {name: torch.load(folder / f"{name}.0", weights_only=True) for name in SCENARIOS}


@pytest.mark.slow
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_step_sends_the_gradients_of_student_and_losses_once(scenario, sent):
    found = sent[scenario]
    whole = found["student"] + found["losses"]
    expected = [0, 0, whole, 0, 0, whole] if "accumulating" in scenario else [whole] * 6
    assert [batch["gradients"] for batch in found["batches"]] == expected
    # of the buffers, the statistics of the losses' own normalisations
    assert [batch["buffers"] for batch in found["batches"]] == [found["statistics"]] * 6


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scenario", "gathered"),
    [
        ("KDLoss", 0),
        ("RKDLoss", 2 * (ROWS * EMBEDDING * NUMBER + LENGTH)),  # features of student and teacher
        ("RKDLoss alone", 0),
        ("CRDLoss", ROWS * INDEX + LENGTH + ROWS * 2 * 5 * NUMBER + LENGTH),  # rows, and both embeddings of width 5
        ("CRDLoss alone", 0),
    ],
)
def test_losses_that_compare_samples_send_what_they_compare(scenario, gathered, sent):
    batches = sent[scenario]["batches"][1:]  # the first one fixes the normalisers of CRD
    assert [batch["gathered"] for batch in batches] == [gathered] * 5
    labels = NUMBER  # over how many of them the task's mean is
    assert [batch["reduced"] for batch in batches] == [batch["gradients"] + labels for batch in batches]
