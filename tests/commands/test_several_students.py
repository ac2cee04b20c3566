"""Several students through the command line: trained, shown in tables, exported one by one, refused in a line."""

import pytest
import torch

from lightning_kd.data import DigitsConvNet
from lightning_kd.teachers import from_checkpoint

# the teachers here are untrained, of which the doctor warns
pytestmark = pytest.mark.filterwarnings("ignore:.*batch normalisation.*has seen a batch")

ONE = "  student: {class_path: DigitsConvNet, init_args: {width: 2}}\n"
TWO = """\
  students:
    small: {class_path: DigitsConvNet, init_args: {width: 4}}
    tiny: {class_path: DigitsConvNet, init_args: {width: 2}}
"""
WITH_CHECKPOINT = [("fast_dev_run: true", "max_steps: 2, limit_val_batches: 1")]


def test_a_configuration_of_several_is_trained_shown_and_exported(fit_with, call, tmp_path):
    folder = f"--trainer.default_root_dir={tmp_path}"
    code, out, err = fit_with(folder, change=[(ONE, TWO), *WITH_CHECKPOINT])
    assert code == 0, err
    assert "Student 'small'" in out
    assert "Student 'tiny'" in out
    (checkpoint,) = tmp_path.rglob("*.ckpt")
    x = torch.rand(3, 1, 8, 8)
    for name, width in {"small": 4, "tiny": 2}.items():
        whole = from_checkpoint(DigitsConvNet(width), checkpoint, prefix=f"{name}.student.").eval()
        for ending in ("safetensors", "pt2"):
            file = tmp_path / f"{name}.{ending}"
            words = ["--checkpoint", str(checkpoint), "--output", str(file), "--prefix", f"{name}.student."]
            assert call("export", *words)[0] == 0
        assert torch.equal(from_checkpoint(DigitsConvNet(width), tmp_path / f"{name}.safetensors").eval()(x), whole(x))
        assert torch.equal(torch.export.load(tmp_path / f"{name}.pt2").module()(x), whole(x))
        config = ["--config", str(tmp_path / "fit.yaml")]
        words = ["--checkpoint", str(checkpoint), "--output", str(tmp_path / f"again.{name}.pt2")]
        assert call("export", *words, "--prefix", f"{name}.student.", *config)[0] == 0
    code, _, err = call("export", "--checkpoint", str(checkpoint), "--output", str(tmp_path / "x.pt2"))
    assert code == 2
    assert "students ['small', 'tiny']" in err
    assert "--prefix small.student." in err


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ((ONE, ONE + TWO), "give student=... or students="),
        ((ONE, ""), "expected --model.student"),
        ((ONE, TWO.replace("small", "trainer")), "cannot be called 'trainer'"),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(change, words, fit_with):
    code, _, err = fit_with(change=[change])
    assert code == 2
    assert words in err
    assert "Traceback" not in err


def test_a_store_is_written_for_one(fit_with, call, tmp_path):
    assert fit_with("--print_config", change=[(ONE, TWO)])[0] == 0
    code, _, err = call("cache", "--config", str(tmp_path / "fit.yaml"), "--output", str(tmp_path / "store"))
    assert code == 2
    assert "has several students" in err
