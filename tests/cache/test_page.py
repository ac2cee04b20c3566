"""The page on stored answers: its example runs as written."""

from pathlib import Path

import pytest
import torch

from tests.test_readme import SHORT, block

PAGE = (Path(__file__).parents[2] / "lightning_kd" / "cache" / "README.md").read_text()


@pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`")
def test_the_example_runs(tmp_path, monkeypatch):
    torch.manual_seed(0)
    monkeypatch.chdir(tmp_path)
    code = block("cache example", PAGE)
    short = code.replace("max_epochs=2", SHORT)
    assert short != code
    given = {}
    exec(short, given)
    assert "train/kd" in given["module"].trainer.callback_metrics
