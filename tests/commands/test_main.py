"""The table of commands: each is named by the help, found by its name, and an unknown name gets the nearest ones."""

import re
import sys
from pathlib import Path

import pytest

import lightning_kd.commands
from lightning_kd.commands import main as command_line
from lightning_kd.commands.main import COMMANDS, Command

FILES = {path.stem for path in Path(lightning_kd.commands.__file__).parent.glob("*.py")} - {"__init__", "main"}


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_names_every_command_on_one_screen(flag, call):
    code, out, err = call(flag)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 80
    for name in ("fit", "validate", "test", "predict", "export"):
        assert [line for line in lines if line.startswith(f"  {name} ")], name
    assert len([line for line in lines if line.startswith("  ")]) == len(COMMANDS)


def test_every_file_of_a_command_is_in_the_table():
    assert {command.function.partition(":")[0] for command in COMMANDS.values()} == FILES


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_a_help_of_its_own(name, call):
    code, out, err = call(name, "--help")
    assert (code, err) == (0, "")
    assert name in out.splitlines()[0]
    assert re.search(r"^  (?:-c, )?--\w", out, re.MULTILINE)


@pytest.mark.parametrize(
    ("word", "nearest"), [("caches", "cache"), ("Fit", "fit"), ("validation", "validate"), ("tset", "test")]
)
def test_an_unknown_command_is_answered_with_the_nearest(word, nearest, call):
    code, out, err = call(word, "--config=a.yaml")
    assert (code, out) == (2, "")
    assert f"there is no command {word!r}. Did you mean {nearest!r}?" in err
    assert "lightning-kd --help" in err


def test_an_unknown_command_that_is_near_none_is_answered_with_the_help(call):
    code, out, err = call("zzz")
    assert (code, out) == (2, "")
    assert "Did you mean" not in err
    assert "lightning-kd --help" in err


def test_no_command_is_answered_with_all_of_them(call):
    code, out, err = call()
    assert (code, out) == (2, "")
    assert all(name in err for name in COMMANDS)


def test_a_command_gets_the_words_after_it_and_its_file_is_imported_only_then(call, monkeypatch, tmp_path):
    (tmp_path / "echo.py").write_text("def words(words):\n    print(words)\n")
    monkeypatch.setattr(lightning_kd.commands, "__path__", [*lightning_kd.commands.__path__, str(tmp_path)])
    table = {**COMMANDS, "echo": Command("Print words.", "echo:words")}
    monkeypatch.setattr(command_line, "COMMANDS", table)
    assert "Print words." in call("--help")[1]
    assert "lightning_kd.commands.echo" not in sys.modules
    try:
        assert call("echo", "a", "--b=1") == (0, "['a', '--b=1']\n", "")
    finally:
        sys.modules.pop("lightning_kd.commands.echo", None)


def test_a_configuration_may_stand_before_the_command(call, tmp_path):
    (tmp_path / "fit.yaml").write_text("fit:\n  trainer:\n    max_epochs: 7\n")
    code, out, err = call(f"--config={tmp_path}/fit.yaml", "fit", "--print_config")
    assert (code, err) == (0, "")
    assert "max_epochs: 7" in out


def test_a_configuration_finds_classes_in_its_own_folder(call, tmp_path):
    name = "a_network_beside_its_configuration"
    (tmp_path / f"{name}.py").write_text("from torch import nn\nclass Net(nn.Linear):\n    pass\n")
    (tmp_path / "fit.yaml").write_text(
        f"model: {{student: {{class_path: {name}.Net, init_args: {{in_features: 2, out_features: 3}}}}}}\n"
        "data: DigitsDataModule\n"
    )
    before = list(sys.path)
    try:
        code, out, err = call("fit", "--config", f"{tmp_path}/fit.yaml", "--print_config")
    finally:
        sys.path[:] = before
        sys.modules.pop(name, None)
    assert (code, err) == (0, "")
    assert f"{name}.Net" in out
