"""``lightning-kd init``: what it writes runs as it stands, and nothing is overwritten."""

import sys

import pytest
import yaml

FAST = ["--trainer.fast_dev_run=true", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]


@pytest.fixture
def started(call, tmp_path, monkeypatch):
    """Write files into a folder, by the words given; put back what commands leave in this process."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    yield lambda *words: call("init", "--output", "new", *words)
    sys.modules.pop("parts", None)


def test_what_is_written_runs_as_it_stands(started, call, tmp_path):
    code, out, err = started()
    assert (code, err) == (0, "")
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["fit.yaml", "parts.py", "teacher.yaml"]
    assert "lightning-kd fit --config new/fit.yaml" in out
    code, out, _ = call("fit", "--config", "new/fit.yaml", *FAST)
    assert code == 0
    assert "the teacher is untrained: run teacher.yaml first" in out
    one = ["--trainer.max_epochs=1", "--trainer.limit_train_batches=1", "--trainer.limit_val_batches=0", *FAST[1:]]
    assert call("fit", "--config", "new/teacher.yaml", *one)[0] == 0
    code, out, _ = call("fit", "--config", "new/fit.yaml", *FAST)
    assert code == 0
    assert "untrained" not in out


def test_names_of_ones_own_are_written_with_their_options(started, call, tmp_path):
    (tmp_path / "mine.py").write_text(
        "from torch import nn\n\nclass Net(nn.Linear):\n"
        "    def __init__(self, classes: int, width: int = 3, bias: bool = True):\n"
        "        super().__init__(width, classes)\n"
    )
    try:
        code, _, _ = started("--student", "mine.Net", "--teacher", "mine.Net", "--data", "DigitsDataModule")
        assert code == 0
        assert [path.name for path in (tmp_path / "new").iterdir()] == ["fit.yaml"]
        text = (tmp_path / "new" / "fit.yaml").read_text()
        assert "      classes: null  # must be given\n    #   width: 3\n    #   bias: true" in text
        model = yaml.safe_load(text)["model"]
        assert model["student"] == {"class_path": "mine.Net", "init_args": {"classes": None}}
        assert yaml.safe_load(text)["data"] == {"class_path": "DigitsDataModule"}
    finally:
        sys.modules.pop("mine", None)


def test_parts_has_only_what_was_not_named(started, tmp_path):
    started("--student", "DigitsConvNet", "--data", "DigitsDataModule")
    text = (tmp_path / "new" / "parts.py").read_text()
    assert "class Teacher" in text
    assert "class Student" not in text
    assert "class Data" not in text
    assert "DataLoader" not in text


def test_nothing_is_overwritten(started, tmp_path):
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "parts.py").write_text("mine")
    code, out, err = started()
    assert (code, out) == (2, "")
    assert "is there already, and nothing is overwritten" in err
    assert [(path.name, path.read_text()) for path in (tmp_path / "new").iterdir()] == [("parts.py", "mine")]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--student", "nowhere.Net"], "--student nowhere.Net: No module named 'nowhere'"),
        (["--teacher", "torch.optim.SGD"], "expected a Module, got the class SGD"),
        (["--data", "DigitsConvNets"], "has no attribute 'DigitsConvNets'"),
        (["--student", "my.nets:Small"], "write the class after a dot, 'my.nets.Small'"),
    ],
)
def test_a_name_that_cannot_be_is_told_in_a_line(words, said, started, tmp_path):
    code, out, err = started(*words)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert said in err
    assert not (tmp_path / "new").exists()
