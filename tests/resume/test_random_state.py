"""Taking and restoring the random state of Python, numpy and torch."""

import random

import numpy as np
import torch

from lightning_kd.fit.resume import random_state


def draw():
    return random.random(), float(np.random.rand()), torch.rand(2).tolist()


def test_a_restored_state_draws_what_came_next():
    saved = random_state.current()
    expected = draw()
    draw()
    random_state.restore(saved)
    assert draw() == expected


def test_the_state_is_plain_data_that_loads_without_running_code(tmp_path):
    torch.save(random_state.current(), tmp_path / "state.pt")
    expected = draw()
    random_state.restore(torch.load(tmp_path / "state.pt", weights_only=True))
    assert draw() == expected
