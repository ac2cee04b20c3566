"""The example of a language model: its files as written, on the standard library of the Python that runs the tests."""

import sys
from pathlib import Path
from typing import get_args

import pytest
import torch
import yaml

from lightning_kd.commands.fit import run
from tests.support import processes

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "language"
SMALL = "--data.train_bytes=20000", "--data.held_out_bytes=5000"
QUICK = "--trainer.max_steps=2", "--trainer.val_check_interval=2", "--trainer.enable_progress_bar=false"

SUMS = {
    "abc.py": 0xC4E9F202E25A6F55,
    "json/decoder.py": 0x3B2E3CB3D29D57A5,
    "runpy.py": 0xB5CD93FA4C924AEC,
    "operator.py": 0xAC07040ADFF09758,
    "bisect.py": 0x4C2629297C479A0B,
}


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch):
    """As the command line does, which finds classes in the current folder."""
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT))


def fit(name, folder, *options):
    root = f"--trainer.default_root_dir={folder}"
    return run(["fit", f"--config={EXAMPLE / name}", root, *SMALL, *QUICK, *options])


def imported(monkeypatch, name):
    monkeypatch.syspath_prepend(str(EXAMPLE))
    monkeypatch.delitem(sys.modules, name, raising=False)
    return __import__(name)


@pytest.fixture
def data(monkeypatch):
    return imported(monkeypatch, "data")


def test_every_file_is_in_one_part(data):
    found = data.files()
    parts = {part: {path for path in found if data.part_of(path) == part} for part in ("train", "validation", "test")}
    assert set.union(*parts.values()) == set(found)
    assert sum(map(len, parts.values())) == len(found) > 200
    assert all(len(part) > 10 for part in parts.values())
    assert not any("test" in path.parts or "site-packages" in path.parts for path in found)


def test_the_name_alone_decides_the_part(data, tmp_path):
    """As `printf NAME | sha256sum` gives them: the first 16 digits, modulo ten."""
    for name, digits in SUMS.items():
        assert data.part_of(Path(name)) == {0: "test", 1: "validation"}.get(digits % 10, "train")
    for name in ("a.py", "test/b.py", "pkg/tests/c.py", "pkg/d.py", "_sysconfigdata_x.py", "config-3/e.py", "f.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    assert [path.as_posix() for path in data.files(tmp_path)] == ["a.py", "pkg/d.py"]


def test_each_byte_is_predicted_once(data):
    windows = data.Windows(torch.arange(10), length=4)
    rows = [windows[i]["input_ids"].tolist() for i in range(len(windows))]
    assert rows == [[0, 1, 2, 3], [3, 4, 5, 6], [6, 7, 8, 9]]
    assert windows[0]["labels"].tolist() == rows[0]


def test_the_text_is_that_of_the_files(data):
    module = data.SourceDataModule(batch_size=2, length=16, train_bytes=100)
    module.setup()
    batch = next(iter(module.test_dataloader()))
    assert batch["input_ids"].shape == (2, 16)
    assert batch["input_ids"].dtype == torch.int64
    assert len(module.windows["train"]) == (100 - 1) // 15
    assert torch.equal(data.read("test")[:31].long(), torch.cat([batch["labels"][0], batch["labels"][1][1:]]))


def test_too_little_text_is_told(data):
    module = data.SourceDataModule(train_bytes=100)
    with pytest.raises(ValueError, match="expected at least 128 bytes of text for a window, got 100"):
        module.setup()


@pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"length": 1}, {"train_bytes": 0}, {"held_out_bytes": 0}])
def test_a_number_out_of_range_is_told(data, wrong):
    with pytest.raises(ValueError, match=rf"SourceDataModule: expected {next(iter(wrong))} >= \d, got"):
        data.SourceDataModule(**wrong)


def test_without_transformers_the_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ValueError, match=r"pip install 'lightning_kd\[hf\]'"):
        fit("fit.yaml", tmp_path)


def test_the_main_example_distils(tmp_path):
    pytest.importorskip("transformers")
    cli = fit("fit.yaml", tmp_path, "--trainer.logger=false")
    assert cli.trainer.global_step == 2
    assert cli.model.run.results["teacher_accuracy"] > 0.6  # the space alone is a fifth of the text
    sizes = [sum(p.numel() for p in net.parameters()) for net in (cli.model.run.teacher.module, cli.model.student)]
    text = (EXAMPLE / "README.md").read_text()
    assert all(f"{size:,} parameters" in text for size in sizes)


@pytest.mark.slow
def test_the_teacher_is_trained_and_exported_by_the_commands_of_its_file(tmp_path):
    pytest.importorskip("transformers")
    checkpoint = f"--trainer.callbacks.init_args.dirpath={tmp_path}"
    fit("teacher.yaml", tmp_path, checkpoint)
    command = "lightning-kd export --checkpoint examples/language/runs/teacher/teacher.ckpt --dtype float16"
    assert command in (EXAMPLE / "teacher.yaml").read_text().replace("\n#", "")
    from lightning_kd.commands.export import export

    export(["--checkpoint", f"{tmp_path}/teacher.ckpt", "--dtype=float16", "--output", f"{tmp_path}/t.safetensors"])
    assert (tmp_path / "t.safetensors").stat().st_size == (EXAMPLE / "teacher.safetensors").stat().st_size


def test_the_networks_of_the_table_are_those_of_the_configurations(monkeypatch):
    pytest.importorskip("transformers")
    compare = imported(monkeypatch, "compare")
    model = yaml.safe_load((EXAMPLE / "fit.yaml").read_text())["model"]
    teacher = yaml.safe_load((EXAMPLE / "teacher.yaml").read_text())["model"]["student"]
    assert model["teacher"]["init_args"]["model"] == teacher
    for network, spec in ((compare.teacher(), teacher), (compare.student(), model["student"])):
        given = spec["init_args"]["config"]
        assert {key: getattr(network.config, key) for key in given} == given


def test_the_tables_hold_what_the_script_compares(monkeypatch):
    pytest.importorskip("transformers")
    compare = imported(monkeypatch, "compare")
    assert (compare.ALONE, *get_args(compare.Method)) == tuple(compare.METHODS)
    assert get_args(compare.Text) == tuple(compare.TEXTS)
    text = (EXAMPLE / "README.md").read_text()
    assert all(f"| {name}" in text for name in (*compare.METHODS, *compare.TEXTS))


def test_an_interval_by_hand(monkeypatch):
    """Three values of standard deviation 1: 4.303 / sqrt(3) = 2.484."""
    pytest.importorskip("transformers")
    compare = imported(monkeypatch, "compare")
    assert compare.interval([1.0, 2.0, 3.0], "+") == "+2.000 ± 2.484"


@pytest.mark.slow
def test_the_table_is_made():
    pytest.importorskip("transformers")
    options = ["--methods=[JSD]", "--texts=[64 kB of text]", "--held_out_bytes=2000", "--jobs=1"]
    command = [sys.executable, str(EXAMPLE / "compare.py"), "--seeds=2", "--steps=20", *options]
    (made,) = processes.run([command], cwd=ROOT, limit=300)
    names = [line.split("|")[1].strip() for line in made.stdout.splitlines() if line.startswith("| ")]
    assert names[:2] == ["64 kB of text", "student alone, 20 steps"]
    assert names[2].startswith("student alone, ")
    assert names[3:] == ["JSD"]
