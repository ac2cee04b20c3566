"""The command `lightning-kd report`: a page of a recorded run, or one line that says what to do."""

import hashlib
import json
import re
import sys
from pathlib import Path

import pytest

from lightning_kd.commands.fit import run

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """The folder that a fit from YAML has recorded itself in."""
    folder = tmp_path_factory.mktemp("recorded")
    options = {
        "max_epochs": 1,
        "limit_train_batches": 2,
        "limit_val_batches": 2,
        "enable_progress_bar": "false",
        "logger": "false",
        "default_root_dir": folder,
        "callbacks+": "lightning_kd.report.RecordRun",
        "callbacks.output": folder / "run",
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        config = ROOT / "examples" / "digits" / "response.yaml"
        run(["fit", f"--config={config}", *(f"--trainer.{name}={value}" for name, value in options.items())])
    return folder / "run"


def test_a_fit_from_yaml_records_itself_and_the_command_makes_its_page(recorded, call, tmp_path):
    code, out, _ = call("report", "--run", str(recorded), "--output", str(tmp_path / "new" / "page.html"))
    assert code == 0
    assert "The report is in" in out
    page = (tmp_path / "new" / "page.html").read_text()
    assert "DigitsConvNet, distilled from DigitsConvNet" in page


def test_the_page_names_what_was_exported(recorded, call, tmp_path):
    weights = tmp_path / "student.safetensors"
    weights.write_bytes(bytes(4000))
    (tmp_path / "student.onnx").write_bytes(b"<b>")
    words = ("--run", str(recorded), "--output", str(tmp_path / "page.html"))
    both = f"--exported=[{weights},{tmp_path}/student.onnx]"
    assert call("report", *words, both)[0] == 0
    page = " ".join(re.sub(r"<[^>]+>", " ", (tmp_path / "page.html").read_text()).split())
    assert "What was exported" in page
    checksum = hashlib.sha256(bytes(4000)).hexdigest()[:16]
    parameters = json.loads((recorded / "record.json").read_text())["teacher"]["parameters"]
    smaller = f"{4 * parameters / 4000:.1f}\N{MULTIPLICATION SIGN} smaller"
    assert f"student.safetensors safetensors 0.004 MB {smaller} {checksum}" in page
    assert "student.onnx onnx 3e-06 MB" in page
    code, _, err = call("report", *words, "--exported=[nowhere.pt]")
    assert (code, err.count("\n")) == (2, 1)
    assert "There is no exported file 'nowhere.pt'" in err


def test_a_folder_without_a_record_is_refused_in_a_line(call, tmp_path):
    code, _, err = call("report", "--run", str(tmp_path), "--output", str(tmp_path / "page.html"))
    assert code == 2
    assert err.startswith(
        f"lightning-kd report: error: {str(tmp_path)!r} holds no record of a run. A fit writes one with"
    )
    assert err.count("\n") == 1
    assert not (tmp_path / "page.html").exists()


def test_another_ending_and_a_missing_package_are_refused_in_a_line(recorded, call, tmp_path, monkeypatch):
    code, _, err = call("report", "--run", str(recorded), "--output", str(tmp_path / "page.pdf"))
    assert (code, err.count("\n")) == (2, 1)
    assert "its name ends in .html" in err
    monkeypatch.setitem(sys.modules, "jinja2", None)
    code, _, err = call("report", "--run", str(recorded), "--output", str(tmp_path / "page.html"))
    assert code == 2
    assert err == 'lightning-kd report: error: A report page takes jinja2: pip install "lightning_kd[report]"\n'


def test_the_help_fits_on_a_screen(call):
    code, out, _ = call("report", "--help")
    assert code == 0
    assert out.count("\n") <= 24
    assert "RecordRun" in out
