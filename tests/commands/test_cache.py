"""``lightning-kd cache``: the fit with the store that it writes is the fit with the teacher itself."""

import json
from pathlib import Path

import pytest
import torch

from lightning_kd.commands import fit as command
from tests.commands.conftest import FIT

# the teachers here are untrained, of which the doctor warns
pytestmark = pytest.mark.filterwarnings("ignore:.*batch normalisation.*has seen a batch")

PLAIN = ("data: DigitsDataModule", "data: {class_path: DigitsDataModule, init_args: {augment: false, batch_size: 898}}")
VIEWS = ("data: DigitsDataModule", "data: {class_path: DigitsDataModule, init_args: {views: 1, batch_size: 898}}")
AT = ("HintLoss", "ATLoss")  # a projector would be drawn after the teacher's own weights, as well
SHORT = ("fast_dev_run: true", "max_steps: 6, enable_checkpointing: false, limit_val_batches: 2")


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Write the configuration changed by a pair, and return its path and that of the store."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))

    def write(*changes):
        text = FIT
        for old, new in (*changes, AT, SHORT):
            assert old in text
            text = text.replace(old, new, 1)
        path = tmp_path / "fit.yaml"
        path.write_text(text)
        return str(path), str(tmp_path / "store")

    return write


def trained(*words):
    module = command.run(["fit", *words]).model
    logged = {name: float(value) for name, value in module.trainer.callback_metrics.items()}
    return torch.cat([p.detach().flatten() for p in module.student.parameters()]), logged


LOOKED_UP = ["--model.teacher", "CachedTeacher", "--model.teacher.path"]


# one batch an epoch: the teacher's own weights are drawn in one of the fits alone, and the order of rows after them
@pytest.mark.parametrize("data", [PLAIN, VIEWS], ids=["plain", "views"])
def test_the_fit_with_the_store_is_the_fit_with_the_teacher(data, files, call):
    config, folder = files(data)
    for split, place in (("train", folder), ("val", f"{folder}/val")):
        code, out, _ = call("cache", "--config", config, "--output", place, "--split", split, "--dtype", "float32")
        assert code == 0
        assert f"{place}: the teacher's answers on the {split} data." in out
    live, logged = trained("--config", config)
    stored, said = trained("--config", config, *LOOKED_UP, folder)
    assert torch.allclose(live, stored, rtol=0, atol=1e-6)
    assert said == pytest.approx(logged, abs=1e-5)
    assert json.loads(Path(folder, "manifest.json").read_text())["layers"]["at"]["teacher"] == [
        "stage1",
        "stage2",
        "stage3",
    ]
    code, out, _ = call("cache", "--verify", folder)
    assert (code, "every file is as it was written" in out) == (0, True)


def test_the_examples_augmentation_is_refused_with_the_remedy(files, call):
    config, folder = files()
    code, _, err = call("cache", "--config", config, "--output", folder)
    assert code == 2
    assert "two different inputs" in err
    assert "Replayed" in err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "Give --config FIT.yaml and --output DIR"),
        (("--verify", "a", "--output", "b"), "leave out --config and --output"),
        (("--config", "none.yaml", "--output", "b"), "There is no file 'none.yaml'"),
        (("-c", "none.yaml", "--output", "b"), "There is no file 'none.yaml'"),
        (("--verify", "a"), "There is no store of a teacher's answers in 'a'"),
    ],
)
def test_what_is_missing_is_told_in_a_line(words, said, call, files):
    files(PLAIN)
    code, _, err = call("cache", *words)
    assert code == 2
    assert said in err
    assert len(err.splitlines()) <= 2


def test_a_configuration_without_the_teacher_itself_is_refused(files, call):
    teacher = ("  teacher: {class_path: DigitsConvNet, init_args: {width: 3}}\n", "")
    config, folder = files(PLAIN, teacher)
    code, _, err = call("cache", "--config", config, "--output", folder)
    assert code == 2
    assert "has no teacher" in err
