"""Commands that look at a fit take every option of the fit, beside their own."""

import json
import re

import pytest

from lightning_kd.commands import check, layers
from lightning_kd.commands.compare import compare
from lightning_kd.commands.parsing.fit_words import apart


def test_the_words_of_a_command_and_those_of_its_fit_are_told_apart():
    own, of_fit = apart(
        ["-c", "preset:deit", "--retry-failed", "--seeds=2", "--model.losses.kd.temperature=2", "--output", "o"],
        compare,
    )
    assert own == ["--retry_failed=true", "--seeds=2", "--output", "o"]
    assert of_fit == ["-c", "preset:deit", "--model.losses.kd.temperature=2"]
    for said in ("true", "false"):
        assert apart(["--retry_failed", said, "-c", "a"], compare) == ([f"--retry_failed={said}"], ["-c", "a"])
    assert apart(["-c", "a", "--retry_failed"], compare) == (["--retry_failed=true"], ["-c", "a"])
    own, of_fit = apart(["--strict", "--trainer.devices", "2", "--config=a", "--batches", "3"], check.look)
    assert own == ["--strict=true", "--batches", "3"]
    assert of_fit == ["--trainer.devices", "2", "--config=a"]
    assert apart(["--rows", "4", "--data.batch_size=8"], layers.show) == (["--rows", "4"], ["--data.batch_size=8"])


@pytest.fixture
def config(fit_with, tmp_path):
    assert fit_with()[0] == 0
    return str(tmp_path / "fit.yaml")


def test_a_check_is_of_the_fit_as_its_options_say(call, config):
    words = ("--trainer.max_epochs=3", "--model.losses.kd.temperature=7", "--batches=2", "--fit_steps=0")
    code, out, _ = call("check", "-c", config, *words)
    assert code == 0
    assert re.search(r"^  teacher entropy at T=7 ", out, re.MULTILINE)


def test_layers_are_those_of_the_networks_that_the_options_name(call, config):
    code, out, _ = call("layers", "-c", config, "--model.student.width=5", "--rows=4")
    assert code == 0
    assert re.search(r"^  \S+ +Conv2d +\(4, 5, 8, 8\) ", out, re.MULTILINE)


def test_a_store_is_of_the_teacher_that_the_options_name(call, config, tmp_path):
    for width in ("3", "6"):
        words = ("--split=val", "--output", str(tmp_path / width), "--model.teacher.width", width)
        assert call("cache", "-c", config, *words)[0] == 0
    stored = [json.loads((tmp_path / width / "manifest.json").read_text())["teacher"] for width in ("3", "6")]
    assert stored[0] != stored[1]


@pytest.mark.parametrize(
    ("command", "typo", "meant"), [("check", "--batchs=2", "--batches"), ("layers", "--row=2", "--rows")]
)
def test_a_typo_is_told_with_the_nearest_name(call, config, command, typo, meant):
    code, _, err = call(command, "-c", config, typo)
    assert code == 2
    assert f"there is no option {typo.partition('=')[0]}. Did you mean {meant}?" in err


@pytest.mark.parametrize("command", ["check", "layers"])
def test_a_command_without_a_fit_says_what_it_needs(call, command):
    code, _, err = call(command)
    assert code == 2
    assert "expected --config FIT.yaml, the configuration of a fit." in err
