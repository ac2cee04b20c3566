"""The command line inside this process: its exit code, and what it prints."""

import sys

import pytest

from lightning_kd.commands.main import main

FIT = """\
seed_everything: 0
model:
  student: {class_path: DigitsConvNet, init_args: {width: 2}}
  teacher: {class_path: DigitsConvNet, init_args: {width: 3}}
  losses:
    - {class_path: KDLoss, init_args: {temperature: 5.0, weight: 0.3}}
    - HintLoss
  optimizer: {class_path: torch.optim.SGD, init_args: {lr: 0.1, momentum: 0.9}}
data: DigitsDataModule
trainer: {logger: false, fast_dev_run: true, accelerator: cpu, enable_progress_bar: false, enable_model_summary: false}
"""


@pytest.fixture
def call(monkeypatch, capsys):
    """Run the command line with some words; return the exit code and what it printed on both streams."""

    def run(*words):
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["lightning-kd", *words])
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code or 0
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def fit_with(call, tmp_path):
    """Call ``fit`` with the configuration above, changed by pairs of old and new text, and with more words."""

    def run(*words, change=(), command="fit"):
        text = FIT
        for old, new in change:
            assert old in text
            text = text.replace(old, new, 1)
        file = tmp_path / "fit.yaml"
        file.write_text(text)
        return call(command, "--config", str(file), *words)

    return run
