"""A refusal is told without a traceback; an error that nobody foresaw keeps it."""

import sys

import pytest

from lightning_kd.commands import main as command_line
from lightning_kd.commands.main import Command

OWN = """\
from torch import nn
from lightning_kd.data import DigitsDataModule
from lightning_kd.losses import KDLoss

class Broken(nn.Module):
    def __init__(self):
        super().__init__()
        raise ValueError("a mistake of the user's own code")

class Clumsy(DigitsDataModule):
    def prepare_data(self):
        return [][0]
"""


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--model.task_weight=-1"], "DistillationModule: expected a finite task_weight >= 0, got -1.0."),
        (["--model.losses.kd.weight=-1"], "KDLoss: expected a finite weight >= 0, got -1.0."),
        (["--model.losses.kd.weight=1e999"], "KDLoss: expected a finite weight >= 0, got inf."),
        (["--model.losses=[]"], "The list of losses is empty"),
        (["--model.losses.hint.student=stage9", "--model.losses.hint.teacher=stage2"], "stage9"),  # at set-up
        (["--model.teacher_weights=none.safetensors"], "none.safetensors"),
        (["--ckpt_path=none.ckpt"], "Checkpoint file not found: none.ckpt"),  # Lightning's own words
        (["--trainer.accelerator=gpuu"], "invalid accelerator name"),
        (["--trainer.max_epochs=-2"], "max_epochs"),
    ],
)
def test_a_refusal_is_its_message_alone(words, said, fit_with):
    code, _, err = fit_with(*words)
    assert code == 2
    assert f"lightning-kd fit: error: {said}" in err or (said in err and "lightning-kd fit: error: " in err)
    assert "Traceback" not in err
    assert len(err.splitlines()) < 24


def test_what_a_user_s_own_code_raises_keeps_its_traceback(fit_with, tmp_path, monkeypatch):
    (tmp_path / "own_code_of_a_user.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    try:
        with pytest.raises(ValueError, match="a mistake of the user's own code"):
            fit_with(change=[("{class_path: DigitsConvNet, init_args: {width: 2}}", "own_code_of_a_user.Broken")])
        with pytest.raises(IndexError):
            fit_with("--data=own_code_of_a_user.Clumsy")
    finally:
        sys.modules.pop("own_code_of_a_user", None)


def test_an_error_in_a_line_of_this_package_keeps_its_traceback(call, monkeypatch):
    monkeypatch.setattr(command_line, "COMMANDS", {"broken": Command("Fail.", "main:unknown")})
    with pytest.raises(AttributeError):
        call("broken")  # unknown() expects a word, and gets a list


def test_export_refuses_in_one_line(call, tmp_path):
    code, out, err = call("export", "--checkpoint=none.ckpt", f"--output={tmp_path}/a.safetensors")
    assert (code, out) == (2, "")
    assert err.startswith("lightning-kd export: error: There is no file 'none.ckpt'")
    assert len(err.splitlines()) == 1


def test_a_teacher_without_its_store_is_refused_in_one_line(fit_with, tmp_path):
    teacher = "teacher: {class_path: DigitsConvNet, init_args: {width: 3}}"
    stored = f"teacher: {{class_path: CachedTeacher, init_args: {{path: {tmp_path}/none}}}}"
    code, _, err = fit_with(change=[(teacher, stored)])
    assert code == 2
    assert "There is no store of a teacher's answers" in err
    assert "Traceback" not in err
